"""python -I preloaded.py SCRIPT: a process with torch and transformers that forks a child for each line of its input.

A line is a JSON list of the arguments of ``main`` in SCRIPT (``quant_experts/checkpoint/fresh_process.py``). The child
is what a fresh process is that has just imported both: nothing of ours is in it, and nothing of an earlier checkpoint.
Each line is answered with one of JSON: what ``main`` returned, or ``{"failed": …}``.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "safetensors.torch",
    *(f"transformers{part}" for part in ("", ".models.auto.modeling_auto", ".modeling_layers", ".masking_utils")),
)
"""What transformers imports when it is asked for the first model takes two seconds."""


def serve(main: Any) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.dup2(2, 1)  # stdout has the answers
            os.write(writing, json.dumps(_answer(main, *json.loads(line))).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        status = os.waitpid(child, 0)[1]
        print(answer or json.dumps({"failed": f"it died with status {status}"}), flush=True)


def _answer(main: Any, checkpoint: str, probe: str, device: str) -> dict[str, Any]:
    try:
        return main(Path(checkpoint), Path(probe), device)
    except BaseException as error:
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    assert "quant_experts" not in sys.modules
    serve(runpy.run_path(sys.argv[1])["main"])
