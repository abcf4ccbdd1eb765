"""Other quantizers on the same weights, rows and test questions, each in an environment of its own."""
