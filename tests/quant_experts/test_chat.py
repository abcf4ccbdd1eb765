"""A conversation is what the model generates, piece by piece, and remembers what was said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant_experts.chat import Conversation, open_conversation
from quant_experts.errors import InvalidCalibration, InvalidModel, InvalidSpec
from tests.models import make_model
from tests.terminal import on_terminal

QUESTION = "what is in the picture"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("chat") / "model")


def test_a_reply_is_the_greedy_answer_in_pieces_and_the_next_one_knows_it(model: Path) -> None:
    pieces: list[str] = []
    conversation = open_conversation(model)
    first = conversation.ask(QUESTION, most_tokens=6, greedy=True, on_text=pieces.append)
    second = conversation.ask("and now", most_tokens=6, greedy=True)

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)

    def answer(messages: list[dict[str, str]]) -> str:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        tokens = plain.generate(**inputs, max_new_tokens=6, do_sample=False)
        return str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    asked = {"role": "user", "content": QUESTION}
    said = [asked, {"role": "assistant", "content": first.text}, {"role": "user", "content": "and now"}]
    assert first.text == answer([asked]) == "".join(pieces)
    assert second.text == answer(said)
    assert (first.tokens, first.complete) == (6, False)
    conversation.clear()
    assert conversation.ask(QUESTION, most_tokens=6, greedy=True).text == first.text


def test_an_image_changes_the_reply_of_a_model_that_sees(tmp_path: Path) -> None:
    conversation = open_conversation(make_model("qwen2_vl", tmp_path / "model"))
    for color in ("red", "white"):
        Image.effect_noise((56, 56), 90 if color == "red" else 5).convert("RGB").save(tmp_path / f"{color}.png")

    def last_logits(image: str) -> torch.Tensor:
        content = conversation._content(QUESTION, [Image.open(tmp_path / image)])
        inputs = conversation._inputs([{"role": "user", "content": content}])
        with torch.inference_mode():
            logits: torch.Tensor = conversation.model(**inputs).logits[0, -1]
        return logits

    assert not torch.equal(last_logits("red.png"), last_logits("white.png"))
    assert conversation.ask(QUESTION, images=[tmp_path / "red.png"], most_tokens=3, greedy=True).tokens == 3
    (tmp_path / "no.png").write_bytes(b"text")
    with pytest.raises(InvalidCalibration, match=r"no\.png: not a PNG, JPEG or WEBP image"):
        conversation.ask(QUESTION, images=[tmp_path / "no.png"])


def test_what_cannot_be_talked_with_is_refused_in_words(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    conversation = open_conversation(model)
    with pytest.raises(InvalidSpec, match="LlamaForCausalLM takes text alone: leave the images out"):
        conversation.ask(QUESTION, images=[tmp_path / "a.png"])
    with pytest.raises(InvalidModel, match="does not answer text"):
        open_conversation(make_model("whisper", tmp_path / "whisper"))
    with pytest.raises(InvalidModel, match="it cannot be loaded"):
        open_conversation(tmp_path)


def test_a_reply_ends_when_it_is_asked_to(model: Path) -> None:
    pieces: list[str] = []
    reply = open_conversation(model).ask(
        QUESTION, most_tokens=500, greedy=True, on_text=pieces.append, should_stop=lambda: bool(pieces)
    )
    assert (reply.tokens < 500, reply.complete) == (True, False)


def test_without_a_template_the_text_goes_on(model: Path) -> None:
    plain = open_conversation(model)
    conversation = Conversation(plain.model, AutoTokenizer.from_pretrained(model, chat_template=""), False)
    assert not conversation.has_template
    assert conversation.ask(QUESTION, most_tokens=4, greedy=True).tokens == 4
    assert conversation.messages == []


def test_the_command_talks_on_a_terminal_and_answers_a_pipe(model: Path) -> None:
    with on_terminal("chat", str(model), "--most-tokens", "5", "--greedy") as terminal:
        terminal.wait_for("/image FILE goes with the next question")
        terminal.press(b"/image /no/such/file\n")
        terminal.wait_for("LlamaForCausalLM takes text alone: leave the images out")
        terminal.press(b"\xff\xfe\n")
        terminal.wait_for("the question is not UTF-8")
        terminal.press(QUESTION.encode() + b"\n")
        terminal.wait_for("ended at --most-tokens 5")
        terminal.press(b"\x04")
        assert terminal.end() == 0
    nothing = subprocess.run(
        [sys.executable, "-m", "quant_experts.cli", "chat", str(model)], input="", capture_output=True, text=True
    )
    assert (nothing.returncode, "there is no question" in nothing.stderr) == (2, True)
    done = subprocess.run(
        [sys.executable, "-m", "quant_experts.cli", "chat", str(model), "--most-tokens", "5", "--greedy"],
        input=QUESTION,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reply = open_conversation(model).ask(QUESTION, most_tokens=5, greedy=True)
    assert done.stdout.strip("\n") == reply.text.strip("\n")
