"""One run from a model directory and calibration rows to a proven checkpoint: ``quantize`` is the library's entry."""
