"""A first look that can fail: a few images learnt by heart."""
