"""Assignment of objects to locations."""
