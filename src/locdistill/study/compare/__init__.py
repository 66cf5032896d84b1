"""Students of several arms compared, seed by seed."""
