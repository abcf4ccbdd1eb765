"""Every causal language model and image-text-to-text type of the installed transformers, tiny, through the pipeline."""
