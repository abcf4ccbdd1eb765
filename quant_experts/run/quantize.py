"""One run from a model directory and calibration rows to a verified checkpoint.

1. preparing: check the files, build the model without weights, plan the input groups, read what an earlier run left;
2. calibrating: run what lies in front of the first stack's blocks once per row; measure sensitivity where it is needed;
3. fitting: walk over the blocks, stack by stack;
4. evaluating: the held-out rows, which passed the walk in full precision and quantized, reach the output head;
5. packing: write the checkpoint beside its final name;
6. verifying: a fresh process loads it and must give the same logits;
7. generating: the user's own task, where that was asked for: replies of the original and of the checkpoint;
8. exporting: write it in other formats too, where that was asked for;
9. publishing: rename it to its final name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quant_experts.calibration.capture import capture_inputs
from quant_experts.calibration.captured_inputs import CapturedInputs, read_captured_inputs
from quant_experts.calibration.collate import Collate, open_collator
from quant_experts.calibration.samples import Choice, RowFile, choose, open_rows
from quant_experts.checkpoint.verify import Ask, ask_fresh_process, verify_in_fresh_process
from quant_experts.checkpoint.write import check_output, publish, rewrite_report, staging_directory, write_files
from quant_experts.errors import InvalidSpec
from quant_experts.evaluation.acceptance import judge
from quant_experts.evaluation.after_walk import Measurements, measure_run
from quant_experts.evaluation.generation import NotGenerated
from quant_experts.evaluation.task import Task, measure_task, prepare_task
from quant_experts.model.blueprint import Blueprint, load, modules_around_blocks, open_blueprint
from quant_experts.model.families.internvl_chat import native_directory
from quant_experts.model.families.stack import Stack
from quant_experts.model.groups import plan_groups
from quant_experts.model.manifest_record import short_record
from quant_experts.model.run_context import RunContext
from quant_experts.model.tensor_file import json_digest
from quant_experts.model.weights import stream
from quant_experts.progress import (
    Finished,
    OnEvent,
    Phase,
    PhaseStarted,
    ShouldStop,
    Warned,
    WrittenFile,
    ignore,
    never,
    stop_if,
)
from quant_experts.report.data import AutoSearch, QualityReport
from quant_experts.run.checks import (
    check_group_size,
    check_rows,
    check_tower,
    chosen_device,
    file_warnings,
    kept_warnings,
    model_warnings,
    row_warnings,
    size_warnings,
    stack_warnings,
)
from quant_experts.run.exports import Exports, check_exports, make_exports
from quant_experts.run.fingerprints import environment_of, inputs_fingerprint, run_parts
from quant_experts.run.time_left import Forecaster, expected_seconds, seconds_to_start
from quant_experts.run.written_size import names_beside_the_blocks, planned_shapes, written_size
from quant_experts.search.search import missed_target, search
from quant_experts.sensitivity.measurements import SensitivityMeasurements
from quant_experts.sensitivity.mixed_precision import check_mixed_precision
from quant_experts.spec.choices import Evaluation
from quant_experts.spec.specification import AUTO, AcceptIf, QuantizationSpec
from quant_experts.walk.blocks import last_stack_inputs, walk
from quant_experts.walk.group_settings import GroupSettings
from quant_experts.walk.resume_files import FinishedBlock, block_file, claim_directory, one_at_a_time


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
    exports: Sequence[str] = (),
    evaluation: Evaluation | None = None,
    on_event: OnEvent = ignore,
    should_stop: ShouldStop = never,
    ask: Ask = ask_fresh_process,
) -> QualityReport:
    """Quantize the model directory ``model`` into the checkpoint ``output``; returns its report.

    ``work`` holds what is finished. A second call with the same inputs resumes from it and ends with the same bytes.
    ``follow_links``: read images through links out of the rows' directory; right for links that are the caller's own,
    as in the hub's caches. ``device``: by default ``cuda`` where there is one, else ``cpu``. ``model_id`` and
    ``model_commit`` only name the model in the report and the recipe. ``keep_superseded``: leave hidden states that no
    resume needs to the caller, who deletes the files named in BlockFinished; for callers that copy a block's files
    after ``on_event`` has returned. ``accept_if``: limits that decide the report's verdict and nothing else; a resumed
    run may have other ones. ``exports``: formats (``quant_experts.export``) in which the finished checkpoint is written
    too, below ``output``/exports; one that cannot be made is named in Finished. ``evaluation``: the user's
    own task, generated greedily with the original and with the checkpoint and scored; its ``dataset`` is a path as
    ``calibration``. Replies that cannot be made are a warning. ``ask``: loads the checkpoint in a process without this
    package.

    Raises a QuantExpertsError that names what is wrong with model, rows, options or numbers; Stopped when
    ``should_stop`` says so. Nothing is left at ``output`` then.
    """
    run = QuantizationRun(
        model=model,
        calibration=calibration,
        output=output,
        spec=spec,
        work=work,
        model_name=model_id or model.name,
        model_commit=model_commit,
        split=split,
        follow_links=follow_links,
        device=device,
        keep_superseded=keep_superseded,
        accept_if=accept_if,
        exports=tuple(exports),
        evaluation=evaluation,
        on_event=Forecaster(on_event, started=seconds_to_start()),
        should_stop=should_stop,
        ask=ask,
    )
    return run.run()


@dataclass
class QuantizationRun:
    """The arguments of ``quantize``, and what each phase leaves for the next ones.

    ``spec``: with scheme "auto", the search replaces it during calibration. ``context``: from the end of calibration on
    with the fingerprint of the blocks. ``inputs``: of the first stack. ``last_inputs``: of the last one.
    """

    model: Path
    calibration: Path
    output: Path
    spec: QuantizationSpec
    work: Path
    model_name: str
    model_commit: str | None
    split: str
    follow_links: bool
    device: str | None
    keep_superseded: bool
    accept_if: AcceptIf | None
    exports: tuple[str, ...]
    evaluation: Evaluation | None
    on_event: Forecaster
    should_stop: ShouldStop
    ask: Ask

    started: float = field(default_factory=time.monotonic)
    warnings: list[str] = field(default_factory=list)

    source: Path = field(init=False)
    rows: RowFile = field(init=False)
    choice: Choice = field(init=False)
    collate: Collate = field(init=False)
    parts: dict[str, str] = field(init=False)
    environment: dict[str, str] = field(init=False)
    context: RunContext = field(init=False)

    inputs: CapturedInputs = field(init=False)
    task: Task | None = None
    auto: AutoSearch | None = None
    settings: GroupSettings = field(init=False)

    blocks: list[FinishedBlock] = field(init=False)
    last_inputs: CapturedInputs = field(init=False)
    measured: Measurements = field(init=False)
    report: QualityReport = field(init=False)

    def run(self) -> QualityReport:
        """All phases."""
        self.prepare()
        self.calibrate()
        self.fit()
        self.evaluate()
        with staging_directory(self.output) as directory:
            files = self.pack(directory)
            self.verify(directory)
            files = self.generate(directory, files)
            exports = self.export(directory)
            self.publish(directory)
        self.on_event(Finished(self.output, (*files, *exports.files), exports.outcomes))
        return self.report

    def prepare(self) -> None:
        self._enter("preparing")
        if self.accept_if is not None and (refusal := self.accept_if.refusal(self.evaluation)) is not None:
            raise InvalidSpec(f"accept_if: {refusal}")
        check_output(self.output)
        self.source = native_directory(self.model, self.work / "native")
        blueprint = open_blueprint(self.source, device=chosen_device(self.device))
        check_tower(self.spec, blueprint.manifest, blueprint.model.config)
        plans = plan_groups(blueprint.model, blueprint.manifest, vision=self.spec.vision)
        check_group_size(self.spec, plans)
        check_mixed_precision(self.spec, plans, blueprint.dtype)
        check_exports(self.exports, self.spec, plans)
        self.collate = open_collator(self.source, blueprint.model.config, dtype=blueprint.dtype)
        self.rows = open_rows(self.calibration, split=self.split, follow_links=self.follow_links)
        self.choice = choose(self.rows, samples=self.spec.samples, holdout=self.spec.holdout, seed=self.spec.seed)
        self.parts = run_parts(self.spec, blueprint, self.rows, self.choice)
        self.environment = environment_of(blueprint.device)
        claim_directory(self.work, self.parts)
        self.context = RunContext(blueprint, plans, self.work, json_digest(self.parts), self.on_event, self.should_stop)
        self._forecast()
        self._warn(*size_warnings(planned_shapes(self.source, self.spec), self.spec))
        self._warn(*file_warnings(self.rows), *model_warnings(blueprint.weights))
        self._warn(*kept_warnings(self.spec, blueprint.manifest), *stack_warnings(self.spec, self._first_stack))
        _load_around_blocks(blueprint)

    def calibrate(self) -> None:
        self._enter("calibrating", self.choice.total)
        key = inputs_fingerprint(self.spec, self.parts, self.source, self.environment)
        self.inputs = read_captured_inputs(self.work, key) or capture_inputs(
            replace(self.context, fingerprint=key), self.rows, self.choice, self.collate, vision=self.spec.vision
        )
        check_rows(self.inputs, self._first_stack)
        self._warn(*row_warnings(self.context.blueprint, self.inputs))
        if self.evaluation is not None:
            self.task = prepare_task(
                self.evaluation,
                self.context,
                self.rows,
                self.choice,
                self.inputs,
                self.spec,
                follow_links=self.follow_links,
                environment=self.environment,
            )
        self._forecast(self.inputs)
        measurements = SensitivityMeasurements(self.context, self.inputs)
        if self.spec.scheme == AUTO:
            self.spec, self.auto = search(self.spec, measurements, open_model=self._open_model)
            self._forecast(self.inputs)
        self.settings = measurements.group_settings(self.spec)
        self.context = replace(self.context, fingerprint=self.settings.fingerprint(self.context.fingerprint))
        self.inputs = replace(self.inputs, files=(*self.inputs.files, *measurements.files.values()))

    def fit(self) -> None:
        self._enter("fitting", len(self.context.plans))
        self.blocks = walk(self.context, self.inputs, self.settings, keep_superseded=self.keep_superseded)
        self.last_inputs = last_stack_inputs(self.context, self.inputs)

    def evaluate(self) -> None:
        self._enter("evaluating")
        reports = [block.report for block in self.blocks]
        self.measured = measure_run(self.context, self.last_inputs, reports, self.settings.spec)
        new = (*self.measured.warnings, *missed_target(self.auto, self.measured.quality))
        self._warn(*(message for message in dict.fromkeys(new) if message not in self.warnings))
        stop_if(self.should_stop, "before packing; a later run goes on from there")

    def pack(self, directory: Path) -> list[WrittenFile]:
        """Write the checkpoint into ``directory``; returns its files."""
        self._enter("packing")
        context, blueprint = self.context, self.context.blueprint
        self.report = self._report()
        return write_files(
            directory,
            source=self.source,
            block_files=[self.work / block_file(block.block) for block in self.blocks],
            groups=[entry for block in self.blocks for entry in block.groups],
            other_tensors=stream(blueprint.weights, names_beside_the_blocks(context)),
            spec=self.spec,
            report=self.report,
            recipe=self._recipe(),
            architecture=blueprint.manifest.model_class,
            manifest=short_record(blueprint.manifest, self.spec.vision),
            untied=bool(blueprint.weights.untied),
        )

    def verify(self, directory: Path) -> None:
        """Raises InvalidCheckpoint when a fresh process does not load the checkpoint to the same logits."""
        self._enter("verifying")
        device = self.context.blueprint.device.type
        verify_in_fresh_process(directory, self.measured.probe, device=device, ask=self.ask)

    def generate(self, directory: Path, files: list[WrittenFile]) -> list[WrittenFile]:
        """Evaluate the user's own task, if there is one, and write the report anew; returns the checkpoint's files."""
        if self.task is None:
            return files
        self._enter("generating", len(self.task.rows.rows) * (1 + self.task.wanted.original))
        try:
            evaluation, warnings = measure_task(self.task, self.context, directory)
            self.report = self.report.model_copy(update={"evaluation": evaluation})
        except NotGenerated as error:
            warnings = [f"evaluation: the replies could not be made: {error}"]
        self._warn(*warnings)
        self.report = self._judged(self.report.model_copy(update={"warnings": list(self.warnings)}))
        return rewrite_report(
            directory,
            files,
            spec=self.spec,
            report=self.report,
            recipe=self._recipe(),
            architecture=self.context.blueprint.manifest.model_class,
        )

    def export(self, directory: Path) -> Exports:
        """Write the checkpoint in the other formats that were asked for."""
        if not self.exports:
            return Exports()
        self._enter("exporting", len(self.exports))
        device = self.context.blueprint.device.type
        return make_exports(
            directory, self.exports, device=device, on_event=self.on_event, should_stop=self.should_stop
        )

    def publish(self, directory: Path) -> None:
        """Give the checkpoint its name."""
        self._enter("publishing")
        publish(directory, self.output)

    @property
    def _first_stack(self) -> Stack:
        return self.context.plans[0][0].stack

    def _enter(self, phase: Phase, total: int | None = None) -> None:
        self.on_event(PhaseStarted(phase, total))

    def _warn(self, *messages: str) -> None:
        for message in messages:
            self.warnings.append(message)
            self.on_event(Warned(message))

    def _forecast(self, inputs: CapturedInputs | None = None) -> None:
        """Forecast the rest of the run, as the present spec has it."""
        shapes = planned_shapes(self.source, self.spec)
        device = self.context.blueprint.device
        self.on_event.expect(expected_seconds(shapes, self.spec, device, self.exports, self.evaluation), inputs)

    def _open_model(self) -> Blueprint:
        """The model anew, with everything that each forward needs except its blocks."""
        blueprint = open_blueprint(self.source, device=self.context.blueprint.device)
        _load_around_blocks(blueprint)
        return blueprint

    def _report(self) -> QualityReport:
        measured, inputs = self.measured, self.last_inputs
        hears = self._first_stack.media == "audio"
        report = QualityReport(
            model=self.model_name,
            scheme=self.spec.scheme,
            method=self.spec.method,
            blocks=[block.report for block in self.blocks],
            quality=measured.quality,
            baseline=measured.baseline,
            calibration=measured.calibration,
            images=measured.images,
            replies=measured.replies,
            mixed_precision=self.settings.mixed_precision,
            auto=self.auto,
            size=written_size(self.context, self.blocks),
            rows_used=len(inputs.fit),
            rows_held_out=len(inputs.held_out),
            rows_skipped=inputs.skipped,
            tokens_vision=sum(row.tokens_vision for row in inputs.fit),
            tokens_text=sum(row.tokens - row.tokens_vision for row in inputs.fit),
            tokens_audio=self.inputs.running.fit_positions if hears else 0,
            warnings=self.warnings,
            seconds=round(time.monotonic() - self.started, 1),
            environment=self.environment,
        )
        return self._judged(report)

    def _judged(self, report: QualityReport) -> QualityReport:
        if self.accept_if is None:
            return report
        return report.model_copy(update={"acceptance": judge(report, self.accept_if)})

    def _recipe(self) -> dict[str, Any]:
        """What makes the checkpoint again."""
        recipe: dict[str, Any] = {
            "model": {"id": self.model_name, "commit": self.model_commit, "fingerprint": self.parts["model"]},
            "calibration": {"name": self.calibration.name, "split": self.split, "fingerprint": self.parts["rows"]},
            "spec": self.spec.model_dump(mode="json"),
            "environment": self.environment,
        }
        if self.auto is not None:
            recipe["auto"] = self.auto.model_dump(mode="json")
        return recipe


def _load_around_blocks(blueprint: Blueprint) -> None:
    """Load norms and rotary tables of the last stack: they are small, and every forward needs them."""
    for name in modules_around_blocks(blueprint, blueprint.manifest.decoder):
        load(blueprint, name)
