"""Annotations as they come: every format, its splits, and what was odd in its files."""
