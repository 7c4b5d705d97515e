"""MT3 in Flax."""
