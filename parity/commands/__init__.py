"""Subcommands of `python -m parity`, one file each."""
