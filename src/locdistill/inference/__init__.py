"""What a trained detector does: evaluate, predict, tiles, benchmark."""
