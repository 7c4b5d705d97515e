"""Checkpoints of any layout as plain arrays under MT3's names."""
