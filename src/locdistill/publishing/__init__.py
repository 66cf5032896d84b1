"""Publication of weights: files, model card, model hub."""
