"""``qe chat``: talk with a checkpoint in the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quant_experts.errors import QuantExpertsError

if TYPE_CHECKING:
    from quant_experts.chat import Conversation

HELP = "/image FILE goes with the next question, /new forgets what was said, Ctrl-C ends a reply, Ctrl-D ends qe chat"
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("chat", short_help="Talk with a checkpoint, with pictures if it takes them.")
@click.argument("checkpoint", metavar="OUT", type=DIRECTORY)
@click.option("--beside", type=DIRECTORY, metavar="DIR", help="Let this model answer too, such as the original.")
@click.option(
    "--image",
    "images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="With the first question; repeatable.",
)
@click.option("--say", "question", metavar="TEXT", help="Ask this, print the reply and end.")
@click.option(
    "--most-tokens", type=click.IntRange(min=1), default=512, show_default=True, metavar="N", help="Of a reply."
)
@click.option("--greedy", is_flag=True, help="The likeliest token each time, so that a reply can be repeated.")
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda", help="Where to compute.")
def command(
    checkpoint: Path,
    beside: Path | None,
    images: tuple[Path, ...],
    question: str | None,
    most_tokens: int,
    greedy: bool,
    device: str,
) -> None:
    """Talk with the checkpoint OUT, or with a model that is not quantized.

    Replies appear as they are generated, on stdout; everything else is on stderr. Questions come from the terminal, one
    a line, or from a pipe as one.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    click.echo("qe: loading", err=True)
    from transformers.utils.logging import disable_progress_bar

    from quant_experts.chat import open_conversation

    disable_progress_bar()
    directories = [checkpoint, *([beside] if beside else [])]
    conversations = {str(each): open_conversation(each, device=device) for each in directories}
    if not all(each.has_template for each in conversations.values()):
        click.echo("qe: without a chat template the model goes on with your text and remembers nothing", err=True)

    def ask(text: str, images: tuple[Path, ...]) -> None:
        for name, conversation in conversations.items():
            if beside:
                click.echo(f"[{name}]", err=True)
            _ask(conversation, text, images, most_tokens=most_tokens, greedy=greedy)

    if question is not None or not sys.stdin.isatty():
        text = question if question is not None else sys.stdin.read().strip()
        if not text:
            raise click.UsageError("there is no question: give --say, or write one to stdin")
        ask(text, images)
        return
    click.echo(f"qe: {HELP}", err=True)
    for text, pictures in _questions(images, conversations):
        try:
            ask(text, pictures)
        except QuantExpertsError as error:
            click.echo(f"qe: {error}", err=True)


def _questions(
    images: tuple[Path, ...], conversations: dict[str, Conversation]
) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """What the user types, with the images that go with it, until Ctrl-D."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo("\nqe: Ctrl-D ends qe chat", err=True)
            continue
        if line == "/new":
            for conversation in conversations.values():
                conversation.clear()
        elif line.startswith("/image "):
            path = Path(line.removeprefix("/image ").strip()).expanduser()
            if _is_image(path, conversations):
                images = (*images, path)
        elif line.startswith("/"):
            click.echo(f"qe: {HELP}", err=True)
        elif line:
            yield line, images
            images = ()


def _is_image(path: Path, conversations: dict[str, Conversation]) -> bool:
    """Whether every model takes it; says why not."""
    try:
        for conversation in conversations.values():
            conversation.read_image(path)
    except (QuantExpertsError, OSError) as error:
        click.echo(f"qe: {error}", err=True)
        return False
    return True


def _ask(conversation: Conversation, text: str, images: tuple[Path, ...], *, most_tokens: int, greedy: bool) -> None:
    with _interruptible() as stopped:
        reply = conversation.ask(
            text,
            images=images,
            most_tokens=most_tokens,
            greedy=greedy,
            on_text=lambda piece: click.echo(piece, nl=False),
            should_stop=lambda: bool(stopped),
        )
    click.echo()
    ending = "" if reply.complete else ", stopped" if stopped else f", ended at --most-tokens {most_tokens}"
    rate = reply.tokens / max(reply.seconds, 1e-9)
    click.echo(f"qe: {reply.tokens} tokens in {reply.seconds:.1f} s, {rate:.1f} a second{ending}", err=True)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that Ctrl-C puts something into; a second Ctrl-C interrupts at once."""
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
