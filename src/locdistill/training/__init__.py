"""One run: prepare, look, fit, resume."""
