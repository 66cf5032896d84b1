"""Comparison of several arms, seed by seed."""
