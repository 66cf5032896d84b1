"""Heads: from the maps of a pyramid to dense predictions."""
