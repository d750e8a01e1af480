"""ProGradAdamW on four published ways to train the image tower."""
