"""The command `perdure`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from perdure.cli.arguments import (
    DEFAULT_STORE,
    STORE_VARIABLE,
    STORES,
    add_commands,
    add_retention,
    default_store,
    without_password,
)
from perdure.cli.exits import CUT_OFF, INTERRUPTED, REFUSED, UNKNOWN
from perdure.core.limits import STREAMS_MAX, TENANT_TURNS_MAX, TURNS_MAX
from perdure.errors import PerdureError, RunNotFoundError, SchemaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; why it is not 0, one line on stderr says."""
    options = command_line().parse_args(arguments)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # A terminal that lacks a letter must not end the command.
        reconfigure(errors="backslashreplace")
    try:
        code = _command(options.run)(options)
        sys.stdout.flush()
        return code
    except (PerdureError, ImportError) as error:
        return _refuse(error, options)
    except BrokenPipeError:
        # What is still buffered would be written at the exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except KeyboardInterrupt:
        return INTERRUPTED


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command's function, which is imported late: `--help` must cost nothing."""
    module, _, function = name.partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(import_module(module), function)
    return command


def _refuse(error: PerdureError | ImportError, options: argparse.Namespace) -> int:
    print(f"perdure: {error}", file=sys.stderr)
    if isinstance(error, SchemaError):
        url = shlex.quote(without_password(options.store))
        told = f"Run `perdure migrate --store {url}`, or use the version that made it."
        print(f"         {told}", file=sys.stderr)
    elif isinstance(error, PerdureError):
        print(f"         {error.hint}", file=sys.stderr)
    return UNKNOWN if isinstance(error, RunNotFoundError) else REFUSED


class _Version(argparse.Action):
    """Prints the version, for which more must be imported than for everything else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"perdure {version('perdure')}")
        parser.exit()


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the whole command line, from which its reference is written."""
    parser = argparse.ArgumentParser(
        prog="perdure", description="Chat turns and agent runs that survive everything but a stop."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="Serve durable chat turns over HTTP"))
    add_commands(commands)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run="perdure.cli.serve:serve")
    parser.description = "Serve durable chat turns over HTTP, with a chat page at /."
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--store",
        default=default_store(),
        metavar="URL",
        help=f"where turns live: {STORES}, or memory: for as long as this process lives "
        f"({DEFAULT_STORE}; or ${STORE_VARIABLE})",
    )
    parser.add_argument(
        "--durability",
        choices=("full", "normal"),
        default="full",
        help="full survives a power cut, normal the end of the process (%(default)s)",
    )
    _add_answering(parser)
    parser.add_argument(
        "--prices",
        default="off",
        metavar="WHICH",
        help="what is recorded as the cost of a call: auto asks the package genai-prices, if it is "
        "installed; the name of a TOML file with prices of your own, which goes before it; or off "
        "(%(default)s)",
    )
    parser.add_argument(
        "--token-delay-ms",
        type=int,
        default=25,
        metavar="N",
        help="pause of the scripted backend between tokens (%(default)s)",
    )
    parser.add_argument(
        "--lease-ms",
        type=int,
        default=15_000,
        metavar="N",
        help="after how long a dead worker's turns are taken over (%(default)s)",
    )
    parser.add_argument(
        "--drain-ms",
        type=int,
        default=5_000,
        metavar="N",
        help="how long turns may go on after a signal before they are given back (%(default)s)",
    )
    _add_admission(parser)
    parser.add_argument(
        "--authorize",
        metavar="MODULE:CALLABLE",
        help="says who makes a request; required on any address but loopback",
    )
    _add_dashboard(parser)
    add_retention(parser)


def _add_answering(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("auto", "scripted", "openai", "openai-responses", "anthropic"),
        default="auto",
        help="who answers; auto takes OPENAI_API_KEY or OPENAI_BASE_URL, else ANTHROPIC_API_KEY or "
        "ANTHROPIC_BASE_URL, else the offline script; openai-responses answers in the background, "
        "so that a crash costs no second call",
    )
    parser.add_argument(
        "--attachments",
        choices=("refuse", "text", "images"),
        default="refuse",
        help="attachments of a message: refuse it, name them to the model as text, or also have "
        "its provider fetch the images among them that have an address (%(default)s)",
    )
    parser.add_argument(
        "--busy",
        choices=("reject", "queue", "replace"),
        default="reject",
        help="a message while its session has a turn in flight: refuse it with 409, answer it "
        "afterwards, or stop that turn; a request may say otherwise (%(default)s)",
    )


def _add_dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dashboard",
        choices=("read", "act", "off"),
        default="read",
        help="the dashboard at /dashboard of an anonymous service: whether it may stop, retry and "
        "fork runs (act), only show them, or is not there (%(default)s)",
    )
    parser.add_argument(
        "--authorize-dashboard",
        metavar="MODULE:CALLABLE",
        help="says who may see the dashboard; beside --authorize there is none without it",
    )


def _add_admission(parser: argparse.ArgumentParser) -> None:
    for option, limit, counted in (
        ("--turns-max", TURNS_MAX, "turns that are worked on at a time"),
        ("--tenant-turns-max", TENANT_TURNS_MAX, "how many of them may be of one tenant"),
        ("--streams-max", STREAMS_MAX, "streams that are open at a time"),
    ):
        parser.add_argument(
            option,
            type=int,
            default=limit,
            metavar="N",
            help=f"{counted}; what is over it is refused with 429 (%(default)s)",
        )
