"""Traces: inputs, every module's outputs, precisions, and the file."""
