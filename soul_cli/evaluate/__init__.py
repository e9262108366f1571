"""Scoring and generation: model + token ids in, numbers and text out."""
