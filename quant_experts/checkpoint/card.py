"""Write the model card, README.md of a checkpoint: what it is, what it lost, how to load it, what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quant_experts.checkpoint.configuration import auto_map
from quant_experts.report.charts import numbers
from quant_experts.report.charts.sentences import CALIBRATION, IMAGES, added_bytes, bought, few_tokens, memory, verdict
from quant_experts.report.charts.warning_list import warning_list
from quant_experts.report.data import ModelQuality, QualityReport
from quant_experts.spec.prefixes import LOCAL
from quant_experts.spec.specification import QuantizationSpec

IMAGE_REPLY = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("CHECKPOINT", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("CHECKPOINT", trust_remote_code=True)

question = [{"type": "image", "path": "picture.jpg"}, {"type": "text", "text": "What is in the picture?"}]
messages = [{"role": "user", "content": question}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
tokens = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""

CHAT_REPLY = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("CHECKPOINT", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("CHECKPOINT")

messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
tokens = model.generate(**inputs.to(model.device), max_new_tokens=64)
print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""

CONTINUATION = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("CHECKPOINT", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("CHECKPOINT")

inputs = tokenizer("The capital of France is", return_token_type_ids=False, return_tensors="pt").to(model.device)
tokens = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
"""

TRANSCRIPT = """\
import wave

import numpy as np
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

model = AutoModelForSpeechSeq2Seq.from_pretrained("CHECKPOINT", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("CHECKPOINT")

with wave.open("speech.wav") as file:  # 16 000 samples per second, 16 bits, one channel
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
inputs = processor(samples, sampling_rate=16000, return_tensors="pt").to(model.device, model.dtype)
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0])
"""


@dataclass(frozen=True)
class _Kind:
    """The texts of the card for one kind of model. ``task``: as model hubs call it. ``snippet``: code from loading to a
    reply; tests run it unchanged."""

    auto_class: str
    task: str
    snippet: str
    quantized: str
    unchanged: str


TEXT = _Kind(
    "AutoModelForCausalLM",
    "text-generation",
    CHAT_REPLY,
    "The language model's linear layers",
    "Vision tower, embeddings, norms and output head",
)
IMAGES_AND_TEXT = replace(
    TEXT, auto_class="AutoModelForImageTextToText", task="image-text-to-text", snippet=IMAGE_REPLY
)
WITH_TOWER = replace(
    IMAGES_AND_TEXT,
    quantized="The linear layers of the language model and of the vision tower",
    unchanged="Patch and token embeddings, norms and output head",
)
SPEECH = _Kind(
    "AutoModelForSpeechSeq2Seq",
    "automatic-speech-recognition",
    TRANSCRIPT,
    "The linear layers of encoder and decoder",
    "Convolutions, embeddings, norms and output head",
)


def _kind(architecture: str, spec: QuantizationSpec) -> _Kind:
    if architecture.endswith("ForCausalLM"):
        return TEXT
    if "AutoModelForSpeechSeq2Seq" in auto_map(architecture):
        return SPEECH
    return WITH_TOWER if spec.vision == "quantize" else IMAGES_AND_TEXT


def model_card(report: QualityReport, spec: QuantizationSpec, *, architecture: str, chats: bool = True) -> str:
    """Markdown with the metadata block that model hubs read. ``chats``: the model has a chat template."""
    kind = _kind(architecture, spec)
    snippet = CONTINUATION if kind is TEXT and not chats else kind.snippet
    warnings = warning_list(report)
    sections = [
        _metadata(report, spec, kind),
        f"# {report.model}, {report.scheme} by Quant Experts\n\n{verdict(report)}\n\n"
        f"{kind.quantized}{_behind(report)} have {spec.bits.weight_bits}-bit weights and "
        f"{_activations(spec)}. {kind.unchanged} are unchanged. {_mixtures(report)}"
        f"Method `{report.method}`: smoothing `{spec.smoothing}`, rounding `{spec.rounding}`, "
        f"reconstruction `{spec.reconstruction}`.",
        _loss(report),
        "## How to load it\n\nWith nothing but transformers 5; the loader is in this directory:\n\n"
        f"```python\n{snippet}```\n\nOr with the package: `pip install quant-experts`, then `import quant_experts` and "
        f"`{kind.auto_class}.from_pretrained(CHECKPOINT)`. In a process that does neither, "
        "loading fails with `MISMATCH` for every quantized layer. Choose another dtype with `dtype=`, never with "
        "`.to(dtype)`: that would convert rotary frequencies too.",
        _limits(spec),
    ]
    if warnings:
        sections.append("## Warnings of the run\n\n" + "\n".join(f"- {warning}" for warning in warnings))
    return "\n\n".join(sections) + "\n"


def _mixtures(report: QualityReport) -> str:
    if not any(group.tokens_routed is not None for block in report.blocks for group in block.groups):
        return ""
    return "The experts of its mixtures are quantized one by one, adapters included; routers are unchanged. "


def _behind(report: QualityReport) -> str:
    """What was quantized between the vision tower and the language model."""
    parts = dict.fromkeys(block.part for block in report.blocks if block.part is not None)
    return f" with its {' and '.join(parts)}" if parts else ""


def _loss(report: QualityReport) -> str:
    """The table of full precision, rounding alone and this checkpoint; then what the limits and the images say."""
    quality, size, baseline = report.quality, report.size, report.baseline
    rows = [
        ("", "KL to full precision, nats per token", "next token agrees", "perplexity", "bits per weight", "bytes"),
        ("---",) * 6,
        ("full precision", "0", "100 %", _perplexity(quality, quality.perplexity_full), "", f"{size.bytes_before:,}"),
    ]
    if baseline is not None:
        base_bytes = size.bytes_after - added_bytes(size)
        rows.append(("rounding alone (RTN)", *_measured(baseline), f"{size.base_bits:.2f}", f"{base_bytes:,}"))
    rows.append(("**this checkpoint**", *_measured(quality), f"{size.effective_bits:.2f}", f"{size.bytes_after:,}"))
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    against = bought(report)
    sentences = [
        f"Measured on {quality.rows} held-out calibration rows ({quality.tokens} tokens), never used to fit.",
        few_tokens(quality),
        table,
        "" if against is None else against.sentence,
        memory(report.size),
        *(f"Limit missed: {sentence}." for sentence in (report.acceptance.missed if report.acceptance else [])),
        IMAGES[report.images.verdict] if report.images else "",
        CALIBRATION[report.calibration.verdict] if report.calibration else "",
        "Errors of every layer: `quality_report.html`. Recipe to make it again: `recipe.json`.",
    ]
    return "## What it lost\n\n" + "\n\n".join(sentence for sentence in sentences if sentence)


def _measured(quality: ModelQuality) -> tuple[str, str, str]:
    error = quality.kl_standard_error
    kl = numbers.number(quality.kl) + ("" if error is None else f" ± {numbers.deviation(error)}")
    return kl, numbers.percent(quality.top1_agreement), _perplexity(quality, quality.perplexity_quantized)


def _perplexity(quality: ModelQuality, value: float) -> str:
    return numbers.perplexity(value) if quality.tells_perplexity else numbers.MISSING


def _metadata(report: QualityReport, spec: QuantizationSpec, kind: _Kind) -> str:
    on_a_hub = report.model.count("/") == 1 and not report.model.startswith(LOCAL)
    base = f"base_model: {report.model}\nbase_model_relation: quantized\n" if on_a_hub else ""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {kind.task}\n{base}"
        f"tags:\n- quant-experts\n- quantized\n- {spec.scheme.lower()}\n---"
    )


def _activations(spec: QuantizationSpec) -> str:
    if not spec.bits.quantizes_activations:
        return "unquantized activations"
    return f"{spec.bits.activation_bits}-bit activations, quantized per token while it runs"


def _limits(spec: QuantizationSpec) -> str:
    limits = [
        "On a GPU, and for long prompts on a CPU, weights are unpacked to the model's dtype whenever a layer runs: "
        "that saves memory and no time.",
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
