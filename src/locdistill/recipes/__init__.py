"""Whole runs as data: the typed recipe, the recipes that come with the package, and how a recipe is run."""
