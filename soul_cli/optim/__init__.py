"""Optimizers: first-order from libraries, second-order (SOUL) here."""
