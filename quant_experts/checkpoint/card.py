"""The model card, README.md of a checkpoint: what it is, what it lost, how to load it, what it cannot do."""

from __future__ import annotations

from quant_experts.config import QuantizationSpec
from quant_experts.report import QualityReport

LOADING = {
    True: """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
```""",
    False: """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
```""",
}


def model_card(report: QualityReport, spec: QuantizationSpec, *, architecture: str) -> str:
    """Markdown with the metadata block that model hubs read."""
    causal = architecture.endswith("ForCausalLM")
    auto_class = "AutoModelForCausalLM" if causal else "AutoModelForImageTextToText"
    quality, size = report.quality, report.size
    warnings = [*report.warnings, *(w for b in report.blocks for g in b.groups for w in g.warnings)]
    sections = [
        _metadata(report, spec, causal=causal),
        f"# {report.model}, {report.scheme} by Quant Experts\n\n"
        f"The language model's linear layers have {spec.bits.weight_bits}-bit weights and "
        f"{_activations(spec)}. Vision tower, embeddings, norms and output head are unchanged. "
        f"Method `{report.method}`: smoothing `{spec.smoothing}`, rounding `{spec.rounding}`, "
        f"reconstruction `{spec.reconstruction}`.",
        "## What it lost\n\n"
        f"Measured on {quality.rows} held-out calibration rows ({quality.tokens} tokens), never used to fit.\n\n"
        "| | full precision | quantized |\n|---|---|---|\n"
        f"| perplexity | {quality.perplexity_full:.4g} | {quality.perplexity_quantized:.4g} |\n"
        f"| next token agrees | | {quality.top1_agreement:.1%} |\n"
        f"| KL to full precision, nats per token | | {quality.kl:.4g} |\n"
        f"| bytes of tensors | {size.bytes_before:,} | {size.bytes_after:,} |\n"
        f"| bits per quantized weight | | {size.effective_bits:.2f} ({size.base_bits:.2f} without experts) |\n\n"
        "Errors of every layer: `quality_report.html`. Recipe to make it again: `recipe.json`.",
        "## How to load it\n\nWith nothing but transformers 5; the loader is in this directory:\n\n"
        f"{LOADING[causal]}\n\nOr with the package: `pip install quant-experts`, then `import quant_experts` and "
        f"`{auto_class}.from_pretrained(CHECKPOINT)`. In a process that does neither, transformers warns and "
        "loads random layers. Choose another dtype with `dtype=`, never with `.to(dtype)`: that would convert rotary "
        "frequencies too.",
        _limits(spec),
    ]
    if warnings:
        sections.append("## Warnings of the run\n\n" + "\n".join(f"- {warning}" for warning in dict.fromkeys(warnings)))
    return "\n\n".join(sections) + "\n"


def _metadata(report: QualityReport, spec: QuantizationSpec, *, causal: bool) -> str:
    on_a_hub = report.model.count("/") == 1 and not report.model.startswith("local/")
    base = f"base_model: {report.model}\nbase_model_relation: quantized\n" if on_a_hub else ""
    task = "text-generation" if causal else "image-text-to-text"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\n{base}"
        f"tags:\n- quant-experts\n- quantized\n- {spec.scheme.lower()}\n---"
    )


def _activations(spec: QuantizationSpec) -> str:
    if not spec.bits.quantizes_activations:
        return "unquantized activations"
    return f"{spec.bits.activation_bits}-bit activations, quantized per token while it runs"


def _limits(spec: QuantizationSpec) -> str:
    limits = [
        "Weights are unpacked to the model's dtype whenever a layer runs: this saves memory, it does not save time.",
        "It was fitted on calibration data; on inputs unlike those, expect more loss than the table says.",
        "It is not trainable, and `save_pretrained` refuses: copy the directory.",
    ]
    if spec.reconstruction == "qe":
        limits.append(
            "The routed experts cannot be folded into the weights; a reader of the integers alone loses them."
        )
    if 4 < spec.bits.activation_bits < 8:
        limits.append("No GPU has integers of this activation width: it runs no faster than W4A8 would.")
    return "## What it cannot do\n\n" + "\n".join(f"- {limit}" for limit in limits)
