"""Test claims of the paper on a small network: plan, run, and report pages."""
