"""One run from a model directory and calibration rows to a proven checkpoint.

1. preparing: check the files, build the model without weights, plan the input groups, look what an earlier run left;
2. calibrating: processor and what runs before the first stack's blocks, once per row;
3. fitting: the walk over the blocks, stack by stack;
4. evaluating: the held-out rows, which have travelled both ways, meet the output head;
5. packing: the checkpoint is written beside its final name;
6. verifying: a fresh process loads it and must give the same logits;
7. publishing: it gets its name.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

import quant_experts
from quant_experts.calibration.capture import gather_calls
from quant_experts.calibration.captured_inputs import Calls, read_calls
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.samples import choose, open_rows, rows_fingerprint
from quant_experts.checkpoint.verify import verify_in_fresh_process
from quant_experts.checkpoint.write import write_checkpoint
from quant_experts.errors import InvalidSpec, Stopped
from quant_experts.evaluation.acceptance import judge
from quant_experts.evaluation.after_walk import measure_run
from quant_experts.evaluation.calibration_quality import NO_IMAGE
from quant_experts.model.blueprint import Blueprint, around_blocks, fill, open_blueprint
from quant_experts.model.families.internvl_chat import native_directory
from quant_experts.model.groups import GroupPlan, plan_groups
from quant_experts.model.manifest_record import short_record
from quant_experts.model.weights import INDEX, SINGLE, shards_fingerprint, stream
from quant_experts.progress import Finished, OnEvent, PhaseStarted, ShouldStop, Warned, ignore, never
from quant_experts.report.data import AutoSearch, QualityReport
from quant_experts.run.reuse import calls_fingerprint
from quant_experts.run.time_left import Forecaster, expecting, seconds_to_start
from quant_experts.run.written_size import about_size, names_beside_the_blocks, written_size
from quant_experts.search.search import missed_target, search
from quant_experts.sensitivity.decide import decide_treatment
from quant_experts.sensitivity.measuring import Measuring
from quant_experts.sensitivity.mixed_precision import check_mixed_precision
from quant_experts.spec.specification import AUTO, AcceptIf, QuantizationSpec
from quant_experts.walk.blocks import calls_behind, walk
from quant_experts.walk.resume_files import block_file, claim_directory, one_at_a_time
from quant_experts.walk.several_stacks import about_stacks, audio_tokens, check_rows, check_stacks

ADAPTER = "adapter_config.json"
LATER_FIELDS = {"vision": "keep", "method_version": 1, "weight_grid": "max"}
"""Fields of the spec that came later → what runs begun before did."""


@one_at_a_time
def quantize(
    *,
    model: Path,
    calibration: Path,
    output: Path,
    spec: QuantizationSpec,
    work: Path,
    model_id: str | None = None,
    model_commit: str | None = None,
    split: str = "train",
    follow_links: bool = True,
    device: str | None = None,
    keep_superseded: bool = False,
    accept_if: AcceptIf | None = None,
    on_event: OnEvent = ignore,
    should_stop: ShouldStop = never,
) -> QualityReport:
    """Quantize the model directory ``model`` into the checkpoint ``output``; returns its report.

    ``work`` holds what is finished; called again with the same inputs, the run goes on from there and ends with the
    same bytes. ``follow_links``: of images beside the rows, also out of their directory: for links that are the
    caller's own, as those of the hub's caches. ``device``: ``cuda`` where there is one, else ``cpu``. ``model_id`` and
    ``model_commit`` only name the model in the report and the recipe. ``keep_superseded``: leave hidden states that no
    resume needs to the caller, who must delete the files named in BlockFinished; for callers that copy a block's files
    after ``on_event`` has returned. ``accept_if``: limits that decide the report's verdict and nothing else; a resumed
    run may have other ones.

    Raises a QuantExpertsError that names what is wrong with model, rows, options or numbers; Stopped when
    ``should_stop`` says so. Nothing is left at ``output`` then.
    """
    started = time.monotonic()
    warnings: list[str] = []
    on_event = forecaster = Forecaster(on_event, started=seconds_to_start())

    def warn(message: str) -> None:
        warnings.append(message)
        on_event(Warned(message))

    on_event(PhaseStarted("preparing"))
    _check_output(output)
    source = native_directory(model, work / "native")
    blueprint = open_blueprint(source, device=_device(device))
    check_stacks(spec, blueprint.manifest, blueprint.model.config)
    plans = plan_groups(blueprint.model, blueprint.manifest, vision=spec.vision)
    _check_group_size(spec, plans)
    check_mixed_precision(spec, plans, blueprint.dtype)
    collate = open_collator(source, blueprint.model.config, dtype=blueprint.dtype)
    rows = open_rows(calibration, split=split, follow_links=follow_links)
    choice = choose(rows, samples=spec.samples, holdout=spec.holdout, seed=spec.seed)
    parts = {
        "spec": _digest(_identity(spec)),
        "model": shards_fingerprint(blueprint.weights.shards, blueprint.config_text),
        "rows": rows_fingerprint(rows, choice),
    }
    fingerprint = _digest(parts)
    claim_directory(work, parts)
    forecaster.expect(expecting(source, spec, blueprint.device))
    for message in (
        *about_size(source, spec),
        *_observations(blueprint),
        *about_stacks(spec, blueprint.manifest.stacks(spec.vision)[0]),
    ):
        warn(message)
    _fill_language_model(blueprint)

    on_event(PhaseStarted("calibrating", choice.wanted))
    key = calls_fingerprint(spec, parts, source, _environment(blueprint))
    calls = read_calls(work, key) or gather_calls(
        blueprint,
        rows,
        choice,
        collate,
        work=work,
        fingerprint=key,
        on_event=on_event,
        should_stop=should_stop,
        vision=spec.vision,
    )
    check_rows(calls, blueprint.manifest.stacks(spec.vision)[0])
    for message in _warnings_about_rows(blueprint, calls):
        warn(message)

    forecaster.expect(expecting(source, spec, blueprint.device), calls)
    measuring = Measuring(blueprint, plans, calls, work, fingerprint, on_event, should_stop)
    found: AutoSearch | None = None
    if spec.scheme == AUTO:
        spec, found = search(spec, measuring, open_model=lambda: _without_blocks(blueprint))
        forecaster.expect(expecting(source, spec, blueprint.device), calls)
    treatment = decide_treatment(spec, measuring)
    calls = replace(calls, files=(*calls.files, *measuring.files.values()))

    on_event(PhaseStarted("fitting", len(plans)))
    blocks = walk(
        blueprint,
        plans,
        calls,
        treatment,
        work=work,
        fingerprint=treatment.fingerprint(fingerprint),
        on_event=on_event,
        should_stop=should_stop,
        keep_superseded=keep_superseded,
    )

    tokens_audio = audio_tokens(calls, blueprint.manifest.stacks(spec.vision)[0])
    calls = calls_behind(plans, calls, work, treatment.fingerprint(fingerprint), blueprint)

    on_event(PhaseStarted("evaluating"))
    measured = measure_run(blueprint, plans, calls, [block.report for block in blocks], treatment.spec, work)
    for message in (*measured.warnings, *missed_target(found, measured.quality)):
        if message not in warnings:
            warn(message)
    if should_stop():
        raise Stopped("stopped before packing; a later run goes on from there")

    on_event(PhaseStarted("packing"))
    report = QualityReport(
        model=model_id or model.name,
        scheme=spec.scheme,
        method=spec.method,
        blocks=[block.report for block in blocks],
        quality=measured.quality,
        baseline=measured.baseline,
        calibration=measured.calibration,
        images=measured.images,
        replies=measured.replies,
        mixed_precision=treatment.mixed_precision,
        auto=found,
        size=written_size(blueprint, plans, blocks, work),
        rows_used=len(calls.fit),
        rows_held_out=len(calls.held_out),
        rows_skipped=calls.skipped,
        tokens_vision=sum(call.tokens_vision for call in calls.fit),
        tokens_text=sum(call.tokens - call.tokens_vision for call in calls.fit),
        tokens_audio=tokens_audio,
        warnings=warnings,
        seconds=round(time.monotonic() - started, 1),
        environment=_environment(blueprint),
    )
    if accept_if is not None:
        report = report.model_copy(update={"acceptance": judge(report, accept_if)})
    recipe = {
        "model": {"id": model_id or model.name, "commit": model_commit, "fingerprint": parts["model"]},
        "calibration": {"name": calibration.name, "split": split, "fingerprint": parts["rows"]},
        "spec": spec.model_dump(mode="json"),
        "environment": _environment(blueprint),
    }
    if found is not None:
        recipe["auto"] = found.model_dump(mode="json")

    def check(directory: Path) -> None:
        on_event(PhaseStarted("verifying"))
        verify_in_fresh_process(directory, measured.probe, device=blueprint.device.type)
        on_event(PhaseStarted("publishing"))

    files = write_checkpoint(
        source=source,
        output=output,
        block_files=[work / block_file(block.block) for block in blocks],
        groups=[entry for block in blocks for entry in block.groups],
        other_tensors=stream(blueprint.weights, names_beside_the_blocks(blueprint, plans)),
        spec=spec,
        report=report,
        recipe=recipe,
        architecture=blueprint.manifest.model_class,
        manifest=short_record(blueprint.manifest, spec.vision),
        untied=bool(blueprint.weights.untied),
        check=check,
    )
    on_event(Finished(output, tuple(files)))
    return report


def _check_output(output: Path) -> None:
    """Now, and not after hours of work."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidSpec(f"output {output} exists and is not an empty directory: choose another, or remove it")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidSpec(f"device {name!r}: torch sees no CUDA device here")
    return torch.device(name)


def _check_group_size(spec: QuantizationSpec, plans: Sequence[Sequence[GroupPlan]]) -> None:
    """Every width is known before anything runs, so that a size that does not divide costs nobody an hour."""
    if not isinstance(spec.group_size, int):
        return
    for plan in (plan for block in plans for plan in block):
        if plan.width % spec.group_size:
            raise InvalidSpec(
                f"group size {spec.group_size} does not divide the input width {plan.width} of {plan.name}; "
                'choose one that does, or "auto" or "channel"'
            )


def _without_blocks(blueprint: Blueprint) -> Blueprint:
    """The same model anew, with all that every forward needs but its blocks."""
    again = open_blueprint(blueprint.directory, device=blueprint.device)
    _fill_language_model(again)
    return again


def _fill_language_model(blueprint: Blueprint) -> None:
    """Norm and rotary tables: small, and part of every forward."""
    for name in around_blocks(blueprint, blueprint.manifest.decoder):
        fill(blueprint, name)


def _observations(blueprint: Blueprint) -> list[str]:
    weights = blueprint.weights
    observations = [
        f"config.json ties {target} to {source}, but the model's files hold both with different values: both are kept, "
        "as transformers does, and the checkpoint's config.json says tie_word_embeddings: false"
        for target, source in weights.untied.items()
    ]
    if weights.unused:
        observations.append(
            f"{len(weights.unused)} tensors in the model's files belong to no module and are dropped, the first is "
            f"{weights.unused[0]}"
        )
    if (weights.shards.directory / ADAPTER).is_file():
        observations.append(
            f"{ADAPTER} lies beside the model: the adapter is not part of it and is left out; where it belongs to the "
            "model, merge it first (peft: merge_and_unload)"
        )
    if SINGLE in (file.path.name for file in weights.shards.files) and (weights.shards.directory / INDEX).is_file():
        observations.append(f"{INDEX} lies beside {SINGLE} and is not read, as in transformers")
    return observations


def _warnings_about_rows(blueprint: Blueprint, calls: Calls) -> list[str]:
    messages = []
    if blueprint.manifest.takes_images and not any(call.tokens_vision for call in calls.fit):
        messages.append(NO_IMAGE)
    for reason, count in calls.skipped.items():
        of_one = reason.startswith("calibration row ")
        messages.append(f"{'' if of_one else f'{count} calibration rows were '}skipped: {reason}")
    if calls.resized:
        messages.append(f"{calls.resized} calibration rows had their images made smaller to fit")
    return messages


def _environment(blueprint: Blueprint) -> dict[str, str]:
    device = blueprint.device
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "quant_experts": quant_experts.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


def _identity(spec: QuantizationSpec) -> dict[str, Any]:
    """What of the spec makes a run another run. Runs begun before a field was there go on after."""
    return {name: value for name, value in spec.model_dump(mode="json").items() if LATER_FIELDS.get(name) != value}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
