"""Everything of MT3 before and after the network, in NumPy: audio, spectrogram, vocabulary, notes, checkpoints."""
