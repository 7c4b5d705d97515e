"""Compares the twins and names what differs."""
