"""The nouns of the runtime. Nothing here needs a device, and nothing here imports torch."""
