"""Traces: inputs, what a side computed on them, and the file."""
