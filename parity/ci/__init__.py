"""Parity over time, for continuous integration: the ledger of runs."""
