"""The YourMT3+ networks in Flax."""
