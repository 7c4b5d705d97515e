"""Planted faults, and what the harness sees of them."""
