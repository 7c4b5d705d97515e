"""Writing, hashing and showing: what every room needs."""
