"""Model architectures, and how checkpoints become models."""
