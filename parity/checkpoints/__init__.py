"""Listing and conversion of checkpoints."""
