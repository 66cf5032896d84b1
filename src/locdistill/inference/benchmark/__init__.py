"""How fast a detector is."""
