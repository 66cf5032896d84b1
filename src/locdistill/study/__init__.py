"""Studies of several runs, and analysis of a finished run."""
