"""Run as a script in a process of its own: vLLM's greedy tokens for the prompts on stdin.

    python generate.py CHECKPOINT OPTIONS OUT < answers.json

OPTIONS: keyword arguments of ``vllm.LLM`` as JSON. OUT becomes a JSON list, one element for each prompt: ``prompt``,
its token ids with those of images, and ``tokens``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main(checkpoint: str, options: dict[str, object], out: Path) -> None:
    asked = json.load(sys.stdin)
    llm = LLM(checkpoint, max_model_len=512, max_num_seqs=8, **options)
    new = len(asked[0]["tokens"])
    sampling = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True)
    chats = [each["messages"] for each in asked if "messages" in each]
    plain = [{"prompt_token_ids": each["prompt"]} for each in asked if "messages" not in each]
    outputs = [*llm.generate(plain, sampling, use_tqdm=False)] if plain else []
    outputs += llm.chat(chats, sampling, use_tqdm=False) if chats else []
    answers = [{"prompt": list(o.prompt_token_ids), "tokens": list(o.outputs[0].token_ids)} for o in outputs]
    out.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
