"""What a teacher said, kept."""
