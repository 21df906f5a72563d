"""Reproduce the paper's figures: multiply-adds, tables, the network's diagram, studies."""
