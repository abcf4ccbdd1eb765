"""Which of the files that a finished block leaves are of more use than to go on after it."""

CAPTURED_INPUTS_FILES = ("calls.safetensors", "calls.json")
"""Names of the files in which the library keeps the captured inputs of the first stack: what the model computes of
the rows before the first block, whatever the scheme. They come with the first block."""
