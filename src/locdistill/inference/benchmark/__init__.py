"""Benchmark of a detector's speed."""
