"""Block by block through the model: observe in full precision, fit, run on quantized, and resume where a run stopped.

May import the fit, the model, the calibration and the tensors' layout; holds one block in memory.
"""
