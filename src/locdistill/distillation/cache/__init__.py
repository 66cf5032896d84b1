"""Cache of a teacher's predictions."""
