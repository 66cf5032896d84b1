"""A single run: preparation, preflight check, training, resumption."""
