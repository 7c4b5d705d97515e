"""Comparison of two traces or two sides: rows of a report."""
