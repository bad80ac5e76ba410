"""The page of the command line, written from the parser that reads it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from docs.code_pages import described_constants
from docs.markdown import page, table
from perdure.cli import exits
from perdure.cli.arguments import DEFAULT_STORE, STORE_VARIABLE
from perdure.cli.main import command_line

OPENING: Final = """
Every command but `serve` and `demo` works beside the service, on the store that `--store` names,
and never makes one. With `--json` it prints one JSON object a line, under the names of the [HTTP
service](http.md); moments are UTC. Without, it prints columns, coloured only on a terminal (and
not with `NO_COLOR`). An error is one line on stderr, and below it the way out. `perdure --version`
prints the version.

A run is named by its id; `@acme/chat:demo:0`, as `ls` prints it, is the run `chat:demo:0` of the
tenant `acme`, the same as with `--tenant acme`. A length of time is a number with its unit:
`500ms`, `90s`, `15m`, `24h`, `30d`, `2w`.
"""

VARIABLES: Final = (
    (STORE_VARIABLE, "the store, where `--store` is not given"),
    ("OPENAI_API_KEY", "`serve`, `doctor --model`: key of the endpoint"),
    ("OPENAI_BASE_URL", "`serve`, `doctor --model`: another OpenAI-compatible endpoint"),
    ("OPENAI_MODEL", "`serve`, `doctor --model`: the model; required with the backend `openai`"),
    ("ANTHROPIC_API_KEY", "the same of Anthropic's API, where none of OpenAI's is set"),
    ("ANTHROPIC_BASE_URL", "another endpoint of the Messages API"),
    ("ANTHROPIC_MODEL", "the model; required with the backend `anthropic`"),
    ("NO_COLOR", "no colours, whatever it is set to"),
)

MORE: Final[Mapping[str, str]] = {
    "serve": """
It serves [HTTP](http.md) until it gets SIGINT or SIGTERM. It needs the extra `serve`; the backends
`openai`, `openai-responses` and `anthropic` need the extra `openai` or `anthropic`
([Models](../guides/models.md)).

```text
backend   scripted (scripted-1)
store     sqlite:perdure.db (durability full)
dashboard http://127.0.0.1:8765/dashboard
address   http://127.0.0.1:8765/
```

A signal cuts the streams (clients come back with their cursors, to the next process), lets turns
finish for `--drain-ms`, gives the others back, and ends with 0. A second signal ends at once. In a
checkout, `make serve` is this command in an environment of its own; `ARGS="--port 9000"` hands
options on.
""",
}


def cli_page() -> str:
    """Return the page."""
    # It must not depend on who writes it.
    os.environ.pop(STORE_VARIABLE, None)
    codes = [(value, text) for _, value, text in described_constants(exits)]
    blocks = [
        "## Exit codes",
        table(("code", "meaning"), codes),
        "## Variables",
        table(("variable", ""), [(f"`{name}`", text) for name, text in VARIABLES]),
    ]
    for name, parser in commands_of(command_line()):
        blocks += list(_command(name, parser))
    return page("The command line", OPENING, *blocks)


def commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that does something, by its whole name."""
    for name, command in _children(parser):
        inner = list(commands_of(command))
        if inner:
            yield from ((f"{name} {verb}", each) for verb, each in inner)
        else:
            yield name, command


def _children(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list(action.choices.items())
    return []


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## perdure {name}"
    yield parser.description or ""
    actions = [action for action in parser._actions if action.dest != "help"]
    words = [f"perdure {name}"]
    words += [_operand(action) for action in actions if not action.option_strings]
    if any(action.option_strings for action in actions):
        words.append("[OPTION]…")
    yield f"```sh\n{' '.join(words)}\n```"
    if name in MORE:
        yield MORE[name]
    operands_first = sorted(actions, key=lambda action: bool(action.option_strings))
    yield table(("", "", "default"), map(_row, operands_first))
    if parser.epilog:
        yield _paragraph(parser.epilog)


def _operand(action: argparse.Action) -> str:
    shown = str(action.metavar or action.dest)
    return f"[{shown}]" if action.nargs == "?" else shown


def _row(action: argparse.Action) -> tuple[str, str, str]:
    if not action.option_strings:
        name = str(action.metavar or action.dest)
    else:
        name = action.option_strings[-1]
        if action.choices is None and action.nargs != 0:
            name = f"{name} {action.metavar or action.dest.upper()}"
    told: dict[str, Any] = {"default": action.default}
    text = (
        (action.help or "").replace(" (%(default)s)", "").replace(f"({DEFAULT_STORE}; or ", "(or ")
    )
    if action.choices is not None:
        text = f"{text}: {', '.join(f'`{choice}`' for choice in action.choices)}"
    default = "" if action.default in (None, False, argparse.SUPPRESS) else f"`{action.default}`"
    return f"`{name}`", text % told, default


def _paragraph(epilog: str) -> str:
    """Return an epilog as text, its examples as a block."""
    head, examples, block = epilog.partition("examples:\n")
    lines = "\n".join(line.strip() for line in block.splitlines())
    rest = f"```sh\n{lines}\n```" if examples else ""
    text = head.strip()
    if text:
        text = f"{text[0].upper()}{text[1:].rstrip('.')}."
    return f"{text}\n\n{rest}".strip()
