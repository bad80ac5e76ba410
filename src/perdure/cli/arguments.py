"""The arguments of all commands but `serve`. Nothing heavy is imported to read them."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, Final

from perdure.core import wording
from perdure.errors import UsageError

DEFAULT_STORE: Final = "sqlite:perdure.db"
STORE_VARIABLE: Final = "PERDURE_STORE"
STATES: Final = (
    "queued",
    "running",
    "sleeping",
    "waiting",
    "parked",
    "completed",
    "stopped",
    "failed",
)
STORES: Final = "sqlite:PATH, file:PATH, postgresql://… or d1:ACCOUNT/DATABASE"
STORE_HELP: Final = f"the store: {STORES}"
RUN_HELP: Final = "id of the run, as ls prints it; chat:SESSION:N for a turn"

_PASSWORD = re.compile(r"(//[^/@:]*:)[^/@]*(@)")

Parser = argparse.ArgumentParser


def default_store() -> str:
    """Return the address of the store that is taken where none is given."""
    return os.environ.get(STORE_VARIABLE) or DEFAULT_STORE


def without_password(url: str) -> str:
    """Return the address of a store as it may be shown."""
    return _PASSWORD.sub(r"\1***\2", url)


def length_ms(text: str) -> int:
    """Return the milliseconds of a length such as `90s` or `1.5h`."""
    try:
        return wording.length_ms(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def length_or_never(text: str) -> int | None:
    """Return the milliseconds of a length; None for `never`."""
    return None if text == "never" else length_ms(text)


def count(text: str) -> int:
    """Return a number of things, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number from 1 on")
    return int(text)


def add_commands(commands: Any) -> None:
    """Add every command but `serve` to the subparsers of the command line."""

    def add(name: str, run: str, summary: str, *, store: bool = True) -> Parser:
        parser: Parser = commands.add_parser(name, help=summary, description=f"{summary}.")
        _finish(parser, run, store=store)
        return parser

    _add_reading(add)
    _add_costs(add)
    _add_steering(add)
    _add_hooks(commands)
    _add_schedules(commands)
    _add_cleaning(add)
    _add_checking(add)


def _finish(parser: Parser, run: str, *, store: bool = True) -> None:
    """Give a command what all have, and say by which function it is run."""
    parser.set_defaults(run=run)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if store:
        parser.add_argument(
            "--store",
            default=default_store(),
            metavar="URL",
            help=f"{STORE_HELP} ({DEFAULT_STORE}; or ${STORE_VARIABLE})",
        )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a line, for programs"
    )


Add = Callable[..., Parser]


def _add_run(parser: Parser) -> None:
    parser.add_argument("run_id", metavar="RUN", help=RUN_HELP)
    _add_tenant(parser, "tenant of the run (the default one; ids that ls prints name theirs)")


def _add_tenant(parser: Parser, told: str) -> None:
    parser.add_argument("--tenant", default=None, metavar="ID", help=told)


def _add_reading(add: Add) -> None:
    ls = add("ls", "perdure.cli.runs:ls", "List runs, the newest first")
    ls.epilog = (
        "examples:\n"
        "  perdure ls --state failed --since 24h\n"
        "  perdure ls --session demo --json | jq -r .id"
    )
    ls.add_argument("--state", choices=STATES, help="only runs in this state")
    ls.add_argument("--session", metavar="ID", help="only turns of this session")
    ls.add_argument("--handler", metavar="NAME", help="only runs of this task or engine")
    _add_tenant(ls, "only runs of this tenant; '' is the default one (all tenants)")
    ls.add_argument(
        "--since",
        metavar="WHEN",
        help="only runs that were created since: 24h, 30d, …, or a date and time (UTC)",
    )
    ls.add_argument(
        "--limit", type=count, default=50, metavar="N", help="so many at most (%(default)s)"
    )
    ls.add_argument(
        "--after", metavar="RUN", help="go on behind this run, the last of the page before"
    )
    ls.add_argument("--all", action="store_true", help="all pages, without a limit")
    show = add("show", "perdure.cli.showing:show", "Show all that is known of a run")
    _add_run(show)
    show.add_argument(
        "--full", action="store_true", help="show results, payloads and errors as a whole"
    )
    tail = add("tail", "perdure.cli.tail:tail", "Follow a chat turn while it is answered")
    tail.epilog = "exit code: 1 if the turn failed or was parked"
    _add_run(tail)
    tail.add_argument(
        "--after", metavar="CURSOR", help="go on behind this cursor (the ids of --json lines)"
    )


def _add_costs(add: Add) -> None:
    costs = add("costs", "perdure.cli.costs:costs", "Add up what model calls used and cost")
    costs.epilog = (
        "A call whose answer was lost is counted as unknown: it may have been billed.\n"
        "\n"
        "examples:\n"
        "  perdure costs --since 30d\n"
        "  perdure costs --by session --tenant acme --since 2026-01-01 --until 2026-02-01\n"
        "  perdure costs --by model --prices prices.toml --json"
    )
    costs.add_argument(
        "--by",
        choices=("day", "session", "tenant", "run", "model"),
        default="day",
        help="what has a line of its own; days are of UTC (%(default)s)",
    )
    told = "only calls that were made since: 24h, 30d, …, or a date and time (UTC)"
    costs.add_argument("--since", metavar="WHEN", help=told)
    costs.add_argument("--until", metavar="WHEN", help="only calls that were made before")
    _add_tenant(costs, "only calls of this tenant; '' is the default one (all tenants)")
    costs.add_argument("--session", metavar="ID", help="only calls of this session")
    costs.add_argument(
        "--prices",
        default="auto",
        metavar="WHICH",
        help="where the price of a call comes from that was recorded without: auto asks the "
        "package genai-prices, if it is installed; off, nowhere; or the name of a TOML file with "
        "prices of your own, which goes before that package (%(default)s)",
    )
    costs.add_argument(
        "--limit", type=count, default=50, metavar="N", help="so many lines at most (%(default)s)"
    )
    costs.add_argument("--all", action="store_true", help="all lines, without a limit")


def _add_steering(add: Add) -> None:
    stop = add("stop", "perdure.cli.steering:stop", "Stop a run, wherever it is worked on")
    _add_run(stop)
    _add_wait(stop, "until it has ended")
    retry = add("retry", "perdure.cli.steering:retry", "Queue a failed or parked run again")
    retry.epilog = "Recorded steps are not repeated. A worker that has the run's handler takes it."
    _add_run(retry)
    _add_wait(retry, "for a worker to take it")
    decide = add(
        "decide",
        "perdure.cli.deciding:decide_call",
        "List the calls of tools that wait for a human, or decide one",
    )
    decide.epilog = "The first answer counts. Exit code: 1 if it was not this one."
    _add_run(decide)
    answer = decide.add_mutually_exclusive_group()
    for flag, approved in (("--approve", True), ("--deny", False)):
        told = f"{flag.strip('-')} the call (without either: list those that wait)"
        answer.add_argument(flag, dest="approved", action="store_const", const=approved, help=told)
    decide.add_argument("--event", metavar="KEY", help="which call, if several wait")
    decide.add_argument("--reason", metavar="TEXT", help="what the model is told with the answer")
    decide.add_argument("--by", metavar="NAME", help="who decides, for the record")
    fork = add(
        "fork", "perdure.cli.forking:fork_run", "Begin a new run with the first steps of another"
    )
    fork.epilog = "The original is not changed. What is done again is done under other keys."
    _add_run(fork)
    fork.add_argument(
        "--from-step",
        type=int,
        required=True,
        metavar="N",
        help="the first step that is done again; those before it are kept",
    )
    fork.add_argument(
        "--new-id",
        metavar="RUN",
        help="id of the fork; that of a turn is its next revision, and needs none",
    )
    fork.add_argument("--dry-run", action="store_true", help="only show what would be done again")


def _add_wait(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--wait",
        type=length_ms,
        default="3s",
        metavar="LENGTH",
        help=f"how long to wait {what}; 0s not at all (%(default)s)",
    )


def _add_hooks(commands: Any) -> None:
    summary = "Look at deliveries to hooks, and make them again"
    hooks: Parser = commands.add_parser("hooks", help=summary, description=f"{summary}.")
    verbs = hooks.add_subparsers(dest="verb", required=True, metavar="VERB")
    told = "List deliveries that wait or are dead"
    ls: Parser = verbs.add_parser("ls", help=told, description=f"{told}.")
    _finish(ls, "perdure.cli.hooks:ls")
    ls.add_argument(
        "--state",
        choices=("waiting", "dead", "delivered"),
        help="only those in this state (waiting and dead)",
    )
    ls.add_argument("--handler", metavar="NAME", help="only those of this engine")
    ls.add_argument(
        "--limit", type=count, default=50, metavar="N", help="so many at most (%(default)s)"
    )
    told = "Make deliveries due at once; a dead one gets all of its tries again"
    retry: Parser = verbs.add_parser("retry", help=told, description=f"{told}.")
    _finish(retry, "perdure.cli.hooks:retry")
    retry.add_argument("run_id", metavar="RUN", nargs="?", help=f"{RUN_HELP}; with its deliveries")
    _add_tenant(retry, "tenant of the run (the default one)")
    retry.add_argument(
        "--position", type=int, metavar="N", help="only this delivery of the run (all of them)"
    )
    retry.add_argument("--dead", action="store_true", help="every dead delivery of the store")


def _add_schedules(commands: Any) -> None:
    summary = "Look at schedules, pause and resume them"
    schedules: Parser = commands.add_parser("schedules", help=summary, description=f"{summary}.")
    verbs = schedules.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, told in (
        ("ls", "List the schedules of a tenant"),
        ("pause", "Let a schedule fire no more"),
        ("resume", "Let a paused schedule fire again, from its next due time on"),
        ("rm", "Forget a schedule, and none of the runs that it began"),
    ):
        verb: Parser = verbs.add_parser(name, help=told, description=f"{told}.")
        _finish(verb, f"perdure.cli.schedules:{name}")
        if name != "ls":
            verb.add_argument("name", metavar="NAME", help="name of the schedule")
        _add_tenant(verb, "tenant of the schedules (the default one)")


def _add_cleaning(add: Add) -> None:
    delete = add("delete", "perdure.cli.deleting:delete", "Delete runs with all that is theirs")
    delete.epilog = "What is worked on is not deleted: stop it first."
    delete.add_argument("run_id", metavar="RUN", nargs="?", help=RUN_HELP)
    delete.add_argument("--session", metavar="ID", help="a whole session, its owner included")
    delete.add_argument("--user", metavar="ID", help="every session of this user")
    _add_tenant(delete, "tenant of what is deleted (the default one)")
    delete.add_argument(
        "--stop", action="store_true", help="of a session or user: stop first what is in flight"
    )
    delete.add_argument(
        "--scrub",
        action="store_true",
        help="then write the database anew, so that its unused parts hold nothing of it; it "
        "takes a while, and as much room again",
    )
    delete.add_argument("--yes", action="store_true", help="do not ask")
    gc = add("gc", "perdure.cli.deleting:gc", "Delete what need not be kept any longer")
    gc.epilog = (
        "Frames are what readers of a live stream come back for; the answer of a turn stays.\n"
        "`perdure serve` does this by itself."
    )
    add_retention(gc)
    gc.add_argument("--dry-run", action="store_true", help="only count")


def add_retention(parser: Parser) -> None:
    """Add the options that say what is kept for how long."""
    parser.add_argument(
        "--frames-after",
        type=length_or_never,
        default="24h",
        metavar="LENGTH",
        help="delete frames of turns that ended so long ago; never keeps them (%(default)s)",
    )
    parser.add_argument(
        "--runs-after",
        type=length_or_never,
        default="never",
        metavar="LENGTH",
        help="delete runs that ended so long ago, with all that is theirs (%(default)s)",
    )


def _add_checking(add: Add) -> None:
    migrate = add("migrate", "perdure.cli.migrating:migrate", "Bring the schema up to date")
    migrate.epilog = (
        "SQLite databases are migrated whenever `serve` or a program of yours opens them;\n"
        "PostgreSQL only by this command."
    )
    migrate.add_argument("--sql", action="store_true", help="print the statements, run nothing")
    doctor = add("doctor", "perdure.cli.doctor:doctor", "Look for what is wrong with a store")
    doctor.epilog = "exit code: 1 if something is wrong; warnings alone are 0"
    doctor.add_argument(
        "--model",
        action="store_true",
        help="also ask the model (OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_MODEL); it costs a token",
    )
    doctor.add_argument(
        "--frames-after",
        type=length_or_never,
        default="24h",
        metavar="LENGTH",
        help="how long frames are kept here (%(default)s)",
    )
    demo = add(
        "demo",
        "perdure.cli.demo:demo",
        "Kill a worker in the middle of a turn, and watch",
        store=False,
    )
    demo.epilog = (
        "Needs no key and no network; works in a temporary folder, and removes it.\n"
        "Exit code: 1 if it did not go as it should."
    )
