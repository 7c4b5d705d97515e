"""From recordings to spectrogram segments."""
