"""Write a checkpoint again for programs that have nothing of ours: plain transformers, vLLM and others.

May import ``checkpoint`` and what that may import. Read in this order: ``formats`` (what there is to choose, what each
loses), ``source`` (the checkpoint that is read), ``dequantized``, ``compressed_tensors``, ``names`` (as hub models have
them), ``write`` (the whole directory).
"""

from quant_experts.export.formats import FORMATS, Format
from quant_experts.export.write import ExportResult, export

__all__ = ["FORMATS", "ExportResult", "Format", "export"]
