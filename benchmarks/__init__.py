"""Accuracy against truth, speed and size; what is timed is a ratio of one run wherever it can be."""
