"""Several runs, or a finished one looked into."""
