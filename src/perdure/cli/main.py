"""The command `perdure`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from perdure.errors import PerdureError

EXIT_REFUSED = 2
"""The command could not begin: its arguments, its environment or its store are at fault."""
EXIT_INTERRUPTED = 128 + signal.SIGINT
"""It was interrupted before it had begun to serve; afterwards an interrupt is an orderly end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 with one line that says why not."""
    options = _parser().parse_args(arguments)
    try:
        # Imported late, so that `--help` costs nothing.
        from perdure.cli.serve import serve

        return serve(options)
    except (PerdureError, ImportError) as error:
        print(f"perdure: {error}", file=sys.stderr)
        if isinstance(error, PerdureError):
            print(f"         {error.hint}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class _Version(argparse.Action):
    """Prints the version, for which more must be imported than for everything else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"perdure {version('perdure')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perdure", description="Chat turns and agent runs that survive everything but a stop."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve durable chat turns over HTTP"))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve durable chat turns over HTTP, with a chat page at /."
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--store",
        default="sqlite:perdure.db",
        metavar="URL",
        help="where turns live: sqlite:PATH or memory: (%(default)s)",
    )
    parser.add_argument(
        "--durability",
        choices=("full", "normal"),
        default="full",
        help="full survives a power cut, normal the end of the process (%(default)s)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "scripted", "openai"),
        default="auto",
        help="who answers; auto takes OPENAI_API_KEY or OPENAI_BASE_URL, else the offline script",
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
    parser.add_argument(
        "--authorize",
        metavar="MODULE:CALLABLE",
        help="says who makes a request; required on any address but loopback",
    )
