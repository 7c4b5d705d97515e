"""MT3 in PyTorch."""
