"""A page of this machine that shows runs while they train: read-only, from their folders alone."""
