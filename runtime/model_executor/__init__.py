"""One forward pass: batch assembly, the model, the sampler."""
