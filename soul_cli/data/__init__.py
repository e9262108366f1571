"""Data: text rows, prompts, token ids, batches."""
