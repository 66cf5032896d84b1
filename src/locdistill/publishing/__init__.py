"""Weights that are given away: files, card, hub."""
