"""Measure the speed of training: against other loops, by phase, and by option."""
