"""Boxes, edges, bins and the grid of locations: mathematics without models."""
