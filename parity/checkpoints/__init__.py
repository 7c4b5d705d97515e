"""Checkpoints listed and converted."""
