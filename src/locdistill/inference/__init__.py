"""Use of a trained detector: evaluate, predict, tiles, benchmark."""
