"""Benchmark reports: evaluation, statistics, the page."""
