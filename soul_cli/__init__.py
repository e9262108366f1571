"""Unlearning experiments for language models, first- and second-order, end to end."""

__version__ = "0.1.0"
