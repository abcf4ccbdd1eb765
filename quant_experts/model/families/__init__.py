"""What the walk has to know about each model family: where things sit, and what is unusual about it."""
