"""Faults to plant in the modules and the arrays of the PyTorch twin of YourMT3+."""
