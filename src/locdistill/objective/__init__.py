"""Loss terms as data: divergence times region over normaliser times weight."""
