"""Exported files: the network that is traced, and a writer for each format."""
