"""The cause of a difference, tested by undoing it."""
