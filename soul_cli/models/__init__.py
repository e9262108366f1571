"""Loading models, and looking at their answers."""
