"""Losses as pure functions: unreduced, consuming the last axis."""
