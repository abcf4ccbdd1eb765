"""The forward of a quantized model and its processor, in two files of which every checkpoint carries a copy.

Each file needs torch and transformers alone and imports nothing of this project. In ``modeling_quant_experts`` read
``QuantizedLinear.forward`` and ``InputGroup.prepare`` first.
"""
