"""Songs, soundfonts, synthesis, published corpora, shards."""
