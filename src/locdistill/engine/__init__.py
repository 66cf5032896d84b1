"""Training: the loop, and what it goes through."""
