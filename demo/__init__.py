"""The demonstration: a small model, real images, one job over HTTP from upload to generated text."""
