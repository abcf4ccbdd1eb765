"""Which of the files that a finished block leaves are of more use than to go on after it."""

CALLS_FILES = ("calls.safetensors", "calls.json")
"""Names of the files in which the library keeps the language model's calls: what it computes of the rows before the
first block, whatever the scheme. They come with the first block."""
