"""The YourMT3+ networks in PyTorch."""
