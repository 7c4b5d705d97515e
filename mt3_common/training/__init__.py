"""Settings, batches and the training loop that both twins share."""
