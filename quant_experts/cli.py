"""``qe``: the command line. Each command is a file of ``quant_experts/commands``; other packages bring theirs through
the entry-point group ``quant_experts.commands``.

Exit codes (``commands/exit_codes.py``): 0 done · 1 the input is at fault or the service refused it (one line, with the
error's code) · 2 the arguments are at fault (one line) · 5 the checkpoint misses a limit of ``--accept-…`` (one line;
it is kept) · 130 interrupted · 141 nobody reads the output any more, as after ``head``. Of a service also: 3 the job
failed · 4 it was cancelled · 6 it was not reached.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import click

from quant_experts import __version__, shipped
from quant_experts.commands.display.printable import printable
from quant_experts.commands.exit_codes import BAD_ARGUMENTS, BAD_INPUT, INTERRUPTED, UNREACHED, UNREAD
from quant_experts.errors import QuantExpertsError, Stopped

ENTRY_POINTS = "quant_experts.commands"
OWN = ("quantize", "plan", "inspect", "verify", "export", "chat")
CLIENT = (
    "submit",
    "watch",
    "jobs",
    "pull",
    "push",
    "logs",
    "report",
    "cancel",
    "retry",
    "fork",
    "compare",
    "datasets",
    "webhooks",
    "keys",
    "hub-token",
    "buckets",
    "usage",
    "delete",
    "retention",
)
"""Commands that speak to a service."""


class Commands(click.Group):
    """A group that imports a command on use, so that ``qe --help`` does not wait for torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*OWN, *CLIENT, *sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))]

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            return _unread()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # rich ends so
                return _unread()
            raise

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in CLIENT and importlib.util.find_spec("httpx") is None:
            return _unavailable(name, "client", "httpx is not installed")
        if name in (*OWN, *CLIENT):
            command = importlib.import_module(f"quant_experts.commands.{name.replace('-', '_')}").command
            assert isinstance(command, click.Command)
            return command
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            shipped.make_importable(for_children=True)
            try:
                plugin = entry.load()
            except ImportError as error:
                return _unavailable(name, "app,worker,engine,embedded", str(error))
            return plugin if isinstance(plugin, click.Command) else None
        return None


def _unread() -> int:
    """Redirect stdout to /dev/null: its flush at exit would fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD


def _unavailable(name: str, extras: str, reason: str) -> click.Command:
    """A stub for a command whose packages are not installed; it says what to install."""
    install = f"pip install 'quant-experts[{extras}]'"

    @click.command(name, short_help=f"(not installed: {install})", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1)
    def command(arguments: tuple[str, ...]) -> None:
        raise click.UsageError(f"{name} needs more packages ({reason}): {install}")

    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="qe")
def qe() -> None:
    """Quantize vision-language models with shared and routed low-rank experts.

    \b
    qe quantize --model DIR --calibration rows.jsonl --scheme W4A6 --output OUT
    qe inspect OUT
    qe verify OUT
    \b
    On a service (QE_URL, QE_API_KEY), with the same options:
    qe submit --model ID --calibration rows.jsonl --scheme W4A6 --watch
    qe pull JOB
    qe compare --model ID --calibration rows.jsonl W4A6 W4A6/gptq W8A8/rtn
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. Ends the process with one of the exit codes above."""
    # Before torch is loaded: OpenMP threads that wait by spinning take the cores from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or file of another encoding lacks some of our characters
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; whatever goes wrong by the user's doing is one line on stderr."""
    shipped.make_importable()
    try:
        code = qe.main(list(arguments) or ["--help"], prog_name="qe", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _complain(context.command_path if context else "qe", error.format_message())
        return error.exit_code
    except Stopped as error:
        _complain("stopped", str(error))
        return INTERRUPTED
    except QuantExpertsError as error:
        _complain(f"error {error.code}", str(error))
        return UNREACHED if error.code == "connection_failed" else BAD_INPUT
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("quant_experts", "app", "worker"):
            raise
        _complain("qe", f"this needs more packages ({error}): pip install 'quant-experts[engine]'")
        return BAD_ARGUMENTS
    except OSError as error:
        path = error.filename2 or error.filename
        _complain("error file", f"{path}: {error.strerror}" if path else str(error))
        return BAD_INPUT
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted", "what is finished is kept; the same command goes on from there")
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _complain(what: str, message: str) -> None:
    click.echo(f"{what}: {printable(message)}", err=True)


if __name__ == "__main__":
    main()
