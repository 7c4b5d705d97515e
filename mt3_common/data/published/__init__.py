"""Published data sets in their published layouts, prepared for training and evaluation."""
