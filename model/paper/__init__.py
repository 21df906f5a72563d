"""The paper's own figures: multiply-adds, tables, the network's diagram, studies."""
