"""Localization distillation for dense object detectors."""
