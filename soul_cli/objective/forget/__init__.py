"""Forget terms: what is minimised on the rows to forget."""
