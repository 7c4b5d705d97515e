"""Notes, events and token ids, and the way between them."""
