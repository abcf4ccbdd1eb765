"""What a quantization will take, told from config.json and safetensors headers alone.

Loads neither torch nor transformers, and imports ``spec`` alone of this project, so that the API, the command line and
the tests stand on the same figures (docs/adr/0014). The order to read it in: ``headers`` (what a model directory says
of itself), ``shapes`` (its input groups), ``recipe`` (what is to be done), ``sizes``, ``memory``, ``seconds`` (what
that takes), ``plan`` (all of it together).
"""
