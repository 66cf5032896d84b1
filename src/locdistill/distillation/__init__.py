"""Localization distillation: the divergences, regions and teachers that need a second detector."""
