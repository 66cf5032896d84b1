"""The look at a run before its first step."""
