"""What a finished run learned from its teacher."""
