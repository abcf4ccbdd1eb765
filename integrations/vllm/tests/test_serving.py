"""vLLM serves checkpoints and answers as transformers does. Run by ``make vllm-test DIR=…`` in vLLM's environment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHECKPOINTS = Path(os.environ["QE_CHECKPOINTS"])
NAMES = sorted(path.parent.name for path in CHECKPOINTS.glob("*/answers.json"))
TIE = {"float32": 0.002, "bfloat16": 0.1}
"""In standard deviations of the logits: either of two tokens so close may come. bfloat16 moves logits by about 0.02,
and by a step of the quantizer where activations have few bits; so every checkpoint is compared in float32."""
IN_BFLOAT16 = [name for name in ("llama", "llama-plain", "qwen2_vl") if name in NAMES]
"""Those whose packed integers are multiplied too, as far as the machine can."""
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


IN_TWO = ("llama", "llama-rotated", "qwen2_vl")
"""Served by two ranks too: biases, int8 experts, rotated inputs, images."""


def expected(name: str, dtype: str = "bfloat16") -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads((CHECKPOINTS / name / "answers.json").read_text())[dtype]
    return answers


def generated(
    checkpoint: Path, asked: list[dict[str, Any]], out: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    script = str(Path(__file__).with_name("generate.py"))
    command = [sys.executable, script, str(checkpoint), json.dumps(options), str(out)]
    return subprocess.run(
        command, input=json.dumps(asked), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def agree(asked: list[dict[str, Any]], **options: Any) -> None:
    """Equal tokens up to the first near tie; most tokens are compared."""
    name, tie = options.pop("name"), TIE[options.setdefault("dtype", "bfloat16")]
    out = CHECKPOINTS / name / "vllm.json"
    done = generated(CHECKPOINTS / name / "checkpoint", asked, out, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    compared = 0
    for right, found in zip(asked, json.loads(out.read_text(encoding="utf-8")), strict=True):
        assert found["prompt"] == right["prompt"]
        for n, (token, other) in enumerate(zip(right["tokens"], found["tokens"], strict=True)):
            if token != other:
                assert right["margins"][n] < tie, f"token {n}: {other} instead of {token}"
                break
            compared += 1
    assert compared >= (0.4 if tie > 0.01 else 0.9) * sum(len(each["tokens"]) for each in asked)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    agree(expected(name, "float32"), name=name, dtype="float32", enforce_eager=True)


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_greedy_tokens_are_those_of_transformers_in_bfloat16(name: str) -> None:
    agree(expected(name), name=name, enforce_eager=True)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_so_they_are_in_chunks_and_from_the_prefix_cache(eager: bool) -> None:
    long = expected("llama")[-1]
    options = {"max_num_batched_tokens": 32, "enable_chunked_prefill": True, "enable_prefix_caching": True}
    agree([long, *expected("llama"), long], name="llama", enforce_eager=eager, **options)


@pytest.mark.parametrize("name", [name for name in IN_TWO if name in NAMES])
def test_two_ranks_answer_as_one(name: str) -> None:
    agree(expected(name, "float32"), name=name, dtype="float32", enforce_eager=True, tensor_parallel_size=2)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(CHECKPOINTS / "llama" / "checkpoint", tmp_path / "broken"))
    shard = broken / "model-00001-of-00001.safetensors"
    tensors = load_file(str(shard))
    del tensors["model.layers.1.self_attn.k_proj.weight_packed"]
    save_file(tensors, str(shard), metadata={"format": "pt"})
    (broken / "model.safetensors.index.json").unlink()
    done = generated(broken, expected("llama")[:1], tmp_path / "out.json", enforce_eager=True)
    assert done.returncode != 0
    assert "layers.1.self_attn.qkv_proj: weight_packed is missing from the checkpoint" in done.stderr + done.stdout


@contextlib.contextmanager
def served(checkpoint: Path, log: Path) -> Iterator[str]:
    """The address of `vllm serve CHECKPOINT`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(checkpoint)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", "--enforce-eager"]
    environment = {**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    # The distribution vllm-cpu does not call itself vllm, whose version the command asks for (vllm-cpu 0.32.0).
    named = log.parent / "named" / "vllm-0.32.0+cpu.dist-info"
    named.mkdir(parents=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    environment["PYTHONPATH"] = str(named.parent)
    with log.open("w") as out:
        server = subprocess.Popen([*command, *options], env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            deadline = time.monotonic() + 900
            while True:
                assert server.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its engine is a process of its own
            server.wait()


def test_vllm_serve_answers_a_question_about_an_image(tmp_path: Path) -> None:
    asked = next(each for each in expected("qwen2_vl") if "messages" in each)
    checkpoint = CHECKPOINTS / "qwen2_vl" / "checkpoint"
    body = {
        "model": str(checkpoint),
        "messages": asked["messages"],
        "temperature": 0,
        "max_tokens": len(asked["tokens"]),
        "ignore_eos": True,
        "return_token_ids": True,
    }
    with served(checkpoint, tmp_path / "server.log") as address:
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=200) as response:
            answer = json.load(response)
    assert answer["usage"]["prompt_tokens"] == len(asked["prompt"])
    tokens = answer["choices"][0]["token_ids"]
    first = next((n for n, pair in enumerate(zip(tokens, asked["tokens"], strict=True)) if pair[0] != pair[1]), None)
    assert first is None or (first > 0 and asked["margins"][first] < TIE["bfloat16"])
