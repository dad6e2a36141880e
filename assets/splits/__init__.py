"""Validated splits: train, val and bench, sealed."""
