"""Diagnosis of a finished distillation run."""
