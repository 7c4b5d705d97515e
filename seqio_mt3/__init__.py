"""Shards as seqio tasks, for users of T5X; the only package that needs TensorFlow."""
