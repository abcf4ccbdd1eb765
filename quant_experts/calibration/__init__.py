"""From rows of text and images to what the model is called with."""
