"""Claims of the paper on a small network: what is run (plan, run) and what it says (pages)."""
