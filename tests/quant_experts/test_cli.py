"""``qe`` as a user meets it: a real small run, what it prints, how it ends, and how quickly it answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from demo.rows import write_jsonl
from quant_experts.cli import run
from quant_experts.commands.options.spec import spec_of, spec_options
from quant_experts.spec.specification import AcceptIf, Budget, Sensitive, Target
from quant_experts.walk.resume_files import one_at_a_time
from tests.models import make_model
from tests.quant_experts.reports import rich_report

QE = [sys.executable, "-m", "quant_experts.cli"]
SMALL = ["--samples", "8", "--experts", "2", "--shared-rank", "4", "--routed-rank", "4", "--important-channels", "4"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``model`` and ``rows.jsonl``."""
    directory = tmp_path_factory.mktemp("inputs")
    make_model("qwen2_vl", directory / "model", blocks=3)
    write_jsonl(directory / "rows.jsonl", 10)
    return directory


@pytest.fixture(scope="module")
def quantized(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A checkpoint, and what the command that made it said."""
    output = tmp_path_factory.mktemp("quantized") / "out"
    done = subprocess.run([*QE, *arguments(inputs, output)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output, done


def arguments(inputs: Path, output: Path, *more: str) -> list[str]:
    return [
        "quantize",
        *("--model", str(inputs / "model")),
        *("--calibration", str(inputs / "rows.jsonl")),
        *("--output", str(output)),
        *SMALL,
        *more,
    ]


def test_quantize_shows_its_way_and_ends_with_a_verdict(
    quantized: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    output, done = quantized
    assert "1 of 3 blocks · block 0" in done.stderr
    assert "3 of 3 blocks · block 2" in done.stderr
    assert "error so far" in done.stderr
    assert "left" in done.stderr
    assert "same next token" in done.stdout
    assert str(output) in done.stdout
    assert (output / "SHA256SUMS").is_file()
    assert sorted(path.name for path in output.parent.iterdir()) == ["out"]  # the work directory is gone


def test_inspect_says_bits_and_layers(
    quantized: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(quantized[0])]) == 0
    text = capsys.readouterr().out
    assert "W4A6" in text
    assert "q_proj k_proj v_proj" in text
    assert "model.language_model.layers.*.self_attn.qkv" in text
    assert "2 × 4" in text
    assert run(["inspect", "--json", str(quantized[0])]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert len(contents["groups"]) == 12
    assert contents["effective_bits"] > contents["base_bits"] > 4
    assert contents["quality"]["kl"] >= 0


def test_inspect_says_what_would_be_quantized_in_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model("qwen2_vl", tmp_path)
    assert run(["inspect", "--model", str(model)]) == 0
    text = capsys.readouterr().out
    assert "language model: model.language_model.layers, run by model.language_model" in text
    assert "blocks 0 to 1" in text
    assert "self_attn.qkv: q_proj k_proj v_proj (128 → 128+64+64)" in text
    assert "lm_head: output head: kept in full precision" in text
    assert run(["inspect", "--json", "--vision", "quantize", "--model", str(model)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [kind["stack"] for kind in record["kinds"]] == ["vision", "vision", "language model"]
    assert record["version"] == 1


def test_a_checkpoint_of_a_later_library_is_refused_by_its_version(
    quantized: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(quantized[0], tmp_path / "out"))
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["quantization_config"]["manifest"]["version"] == 1
    config["quantization_config"]["manifest"]["version"] = 2
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert run(["inspect", str(checkpoint)]) != 0
    assert "the manifest in quantization_config has version 2, this library reads up to 1" in capsys.readouterr().err


def test_inspect_says_what_the_report_knows(
    quantized: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(quantized[0], tmp_path / "out"))
    (checkpoint / "quality_report.json").write_text(rich_report(3).model_dump_json())
    assert run(["inspect", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for beginning in (
        "Rejected (1 of 3 limits missed): on held-out rows",
        "limit missed: The same next token",
        "against rounding alone (KL 0.129): qe removes 83.4 % of the KL",
        "calibration data: thin: The halves",
        "images: keeps looking (86.6 % of the full-precision reaction)",
        "mixed precision: 1 input groups, 9.74 % of the weights, at 8 bits, chosen by share",
        "searched: 9 configurations, chosen W4A6 · 8 experts of rank 32 · 10 % at 8 bits",
    ):
        assert any(line.startswith(beginning) for line in lines), beginning
    assert run(["inspect", "--json", str(checkpoint)]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert contents["baseline"]["kl"] == 0.12871
    assert contents["acceptance"]["verdict"] == "rejected"
    assert contents["mixed_precision"]["weight_bits"] == 8


def test_a_rejected_checkpoint_is_kept_and_the_exit_code_says_so(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["--accept-max-kl", "1e-9", "--accept-min-top1", "0.01"]
    options = ["--adapter-dtype", "int8", "--sensitive-groups", "layers.0.mlp.down", "--sensitive-bits", "6"]
    assert run(arguments(inputs, tmp_path / "out", *limits, *options)) == 5
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert last.startswith("rejected: KL is ")
    assert "over the limit of 1e-09" in last
    assert "Rejected (1 of 2 limits missed)" in said.out
    report = json.loads((tmp_path / "out" / "quality_report.json").read_text())
    assert report["acceptance"]["limits"] == {"max_kl": 1e-9, "min_top1_agreement": 0.01}
    assert report["acceptance"]["verdict"] == "rejected"
    assert [name.rsplit("layers.")[1] for name in report["mixed_precision"]["groups"]] == ["0.mlp.down"]
    assert report["mixed_precision"]["weight_bits"] == 6
    assert run(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sensitive-share", "0.1"], {"sensitive": Sensitive(share=0.1)}),
        (
            ["--sensitive-groups", "a", "--sensitive-groups", "b", "--sensitive-bits", "6"],
            {"sensitive": Sensitive(groups=("a", "b"), weight_bits=6)},
        ),
        (["--bits-per-weight", "5.5"], {"budget": Budget(bits_per_weight=5.5)}),
        (["--scheme", "auto", "--max-bytes", "2.5GB"], {"scheme": "auto", "target": Target(max_bytes=2_500_000_000)}),
        (["--scheme", "auto", "--max-bytes", "900 MiB"], {"target": Target(max_bytes=900 * 2**20)}),
        (["--scheme", "auto", "--max-bytes", "123"], {"target": Target(max_bytes=123)}),
        (["--scheme", "auto", "--max-kl", "0.05"], {"target": Target(max_kl=0.05)}),
        (["--smoothing", "smoothquant", "--smoothquant-alpha", "0.9"], {"smoothquant_alpha": 0.9}),
        (["--adapter-dtype", "int8"], {"adapter_dtype": "int8"}),
        (["--group-size", "64", "--method", "gptq"], {"group_size": 64, "rounding": "gptq"}),
    ],
)
def test_options_make_the_spec(options: list[str], expected: dict[str, object]) -> None:
    spec, accept_if = spec_of(**parsed(options))
    assert {name: getattr(spec, name) for name in expected} == expected
    assert accept_if is None


def test_options_make_the_limits() -> None:
    _, accept_if = spec_of(**parsed(["--accept-max-kl", "0.1", "--accept-max-perplexity-increase", "0"]))
    assert accept_if == AcceptIf(max_kl=0.1, max_perplexity_increase=0.0)


def parsed(options: list[str]) -> dict[str, Any]:
    """What click makes of the options that say what to do."""

    @click.command()
    @spec_options
    def command(**found: Any) -> dict[str, Any]:
        return found

    result = command.main(options, standalone_mode=False)
    assert isinstance(result, dict)
    return result


def test_verify_passes_and_then_names_a_changed_byte(
    quantized: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(quantized[0])]) == 0
    assert "logits are finite" in capsys.readouterr().out
    damaged = Path(shutil.copytree(quantized[0], tmp_path / "damaged"))
    with (damaged / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert run(["verify", str(damaged)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error invalid_checkpoint: ")
    assert "tokenizer.json has changed" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--scheme", "W9A9"], "--scheme W9A9"),
        (["--scheme", "int4"], "write W<bits>A<bits>"),
        (["--method", "magic"], "'magic' is not one of"),
        (["--group-size", "48"], "--group-size 48"),
        (["--shared-rank", "-1"], "--shared-rank -1"),
        (["--experts", "many"], "'many' is not a valid integer"),
        (["--smoothing", "soap"], "--smoothing soap: choose one of awq, mbq, none"),
        (["--frobnicate"], "--frobnicate"),
        (["--scheme", "auto"], "--scheme auto: give --max-bytes or --max-kl"),
        (["--max-kl", "0.1"], "--max-kl goes with --scheme auto"),
        (["--scheme", "auto", "--max-kl", "0.1", "--max-bytes", "1GB"], "--max-bytes and --max-kl: give one"),
        (["--scheme", "auto", "--max-bytes", "2 boxes"], "'2 boxes' is not a size: write 2.5GB"),
        (["--scheme", "auto", "--max-bytes", "0"], "--max-bytes 0: "),
        (["--scheme", "auto", "--max-kl", "1", "--sensitive-share", "0.1"], "leave out --sensitive-share"),
        (["--sensitive-share", "2"], "--sensitive-share 2.0: "),
        (["--sensitive-share", "0.1", "--bits-per-weight", "5"], "--sensitive-share and --bits-per-weight both choose"),
        (["--sensitive-bits", "8"], "--sensitive-bits goes with"),
        (["--sensitive-share", "0.1", "--sensitive-bits", "7"], "'7' is not one of"),
        (["--bits-per-weight", "1"], "--bits-per-weight 1.0: "),
        (["--adapter-dtype", "fp8"], "'fp8' is not one of"),
        (["--smoothquant-alpha", "1.5"], "--smoothquant-alpha 1.5: "),
        (["--accept-max-kl", "-1"], "--accept-max-kl -1.0: "),
        (["--accept-min-top1", "95"], "--accept-min-top1 95.0: "),
        (["--accept-max-kl", "much"], "'much' is not a valid float"),
        (["--accept-max-kl", "nan"], "'--accept-max-kl': 'nan' is not a finite number"),
        (["--scheme", "auto", "--max-kl", "inf"], "'--max-kl': 'inf' is not a finite number"),
        (["--scheme", "auto", "--max-bytes", "1" + 400 * "0"], "is more than any file has"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], named: str
) -> None:
    assert run(arguments(inputs, tmp_path / "out", *changes)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [["frob"], ["quantize", "--model", "m"], ["inspect", "/no/such/directory"], ["verify"]]
)
def test_a_wrong_call_is_one_line_and_exit_code_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_output_in_use_is_refused_before_anything_runs(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(arguments(inputs, tmp_path)) == 2
    assert "is not an empty directory" in capsys.readouterr().err


def test_a_work_directory_in_use_names_the_process_that_works_there(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "out.work"

    @one_at_a_time
    def working(*, work: Path) -> int:
        return run(arguments(inputs, tmp_path / "out"))

    assert working(work=work) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error invalid_spec: process {os.getpid()} (")
    assert f"works in {work}: wait until it has ended" in said


@contextmanager
def disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_disk_without_room_for_the_checkpoint_is_refused_before_anything_runs(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "small", 256 << 10) as small:
        assert run(arguments(inputs, small / "out")) == 1
        assert not any(small.iterdir())
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error out_of_disk: {small} has 256 KiB free, and the run writes ")


def test_a_disk_that_becomes_full_says_where_and_the_same_command_goes_on(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "small", 3 << 20) as small:
        command = arguments(inputs, tmp_path / "out", "--work", str(small / "work"))
        filler = small / "filler"
        filler.write_bytes(bytes(2_000_000))
        assert run(command) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error out_of_disk: no space is left at ")
        assert f"finished blocks are kept in {small / 'work'}" in said
        assert not (tmp_path / "out").exists()
        filler.unlink()
        assert run(command) == 0


def test_bad_input_is_one_line_with_its_code_and_exit_code_1(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(inputs, tmp_path / "out", "--calibration", str(tmp_path / "rows.jsonl"))
    assert run(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error invalid_calibration: ")
    assert error.count("\n") == 1
    assert run(arguments(inputs, tmp_path / "out", "--model", str(tmp_path / "nowhere"))) == 1
    assert capsys.readouterr().err.startswith("error invalid_model: ")


def test_an_interrupted_run_says_how_to_go_on_and_goes_on_to_the_same_bytes(
    inputs: Path, quantized: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with subprocess.Popen(
        [*QE, *arguments(inputs, output)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("1 of 3 blocks"):
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, "".join(said)
    text = "".join(said)
    assert "run the same command again" in text
    assert not output.exists()
    done = subprocess.run([*QE, *arguments(inputs, output)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 blocks · block 0 · found finished" in done.stderr
    name = "model-00001-of-00001.safetensors"
    assert (output / name).read_bytes() == (quantized[0] / name).read_bytes()


def test_help_lists_every_command_without_waiting_for_torch() -> None:
    code = "import sys; from quant_experts.cli import run; run(['--help']); print('torch' in sys.modules)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    for name in ("quantize", "plan", "inspect", "verify", "serve"):
        assert f"\n  {name} " in done.stdout
    assert done.stdout.endswith("False\n")
    assert seconds < 10 or os.getloadavg()[0] > 4  # about 1 s on an idle core


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["datasets"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Usage: qe datasets [OPTIONS] COMMAND [ARGS]..."
    assert any(line.startswith("  upload ") for line in lines)


def test_quantize_help_names_every_promised_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", "--help"]) == 0
    text = capsys.readouterr().out
    for option in (
        *("--model", "--calibration", "--scheme", "--method", "--samples", "--seed", "--group-size"),
        *("--shared-rank", "--routed-rank", "--experts", "--important-channels", "--output"),
        *("--adapter-dtype", "--sensitive-share", "--sensitive-groups", "--sensitive-bits", "--bits-per-weight"),
        *("--max-bytes", "--max-kl", "--smoothquant-alpha", "--accept-max-kl", "--accept-min-top1"),
    ):
        assert f"{option} " in text
