"""Which location answers for which object."""
