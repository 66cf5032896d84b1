"""Preflight check of a run, before its first step."""
