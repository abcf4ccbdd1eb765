"""The checkpoint format: what a fitted group becomes on disk, writing a model, reading it back, proving it."""
