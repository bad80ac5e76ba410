"""`perdure doctor`: what is wrong with a store, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator
from typing import Final

from perdure.backends.protocol import Backend
from perdure.cli.checks import (
    Finding,
    examine_content,
    examine_model,
    examine_place,
    schema_fault,
)
from perdure.cli.exits import DONE, NO
from perdure.cli.models import chosen_backend, model_backend
from perdure.cli.opening import check_is_there, opened, ran
from perdure.cli.output import as_json, emphasised, one_line, print_json, print_mark
from perdure.errors import PerdureError, SchemaError, UsageError
from perdure.store.upkeep import upkeep_of

MODEL_TIMEOUT_MS: Final = 30_000
"""So long a model may take for its first word."""


def doctor(options: argparse.Namespace) -> int:
    """Look for faults; return the exit code: 1 if there is one."""
    return ran(_doctor, options)


async def _doctor(options: argparse.Namespace) -> int:
    faults = 0
    async for finding in _findings(options):
        faults += finding.level == "fault"
        if options.json:
            print_json(as_json(finding))
        else:
            _print(finding)
    if not options.json:
        told = "1 thing is wrong" if faults == 1 else f"{faults} things are wrong"
        print(emphasised(f"\n{told}" if faults else "\nnothing is wrong"))
    return NO if faults else DONE


def _print(finding: Finding) -> None:
    print_mark(finding.level, f"{finding.check.ljust(8)} {one_line(finding.told)}")
    if finding.way_out is not None:
        print(f"{' ' * 18}→ {one_line(finding.way_out)}")


async def _findings(options: argparse.Namespace) -> AsyncGenerator[Finding, None]:
    try:
        check_is_there(options.store)
    except UsageError as error:
        if not options.model:
            raise
        # Whoever asks for the model alone may not have a store yet.
        yield Finding("warning", "store", str(error), error.hint)
        yield await _model()
        return
    can_open = True
    for finding in examine_place(options.store):
        # Neither is opened: a library that is too old, and a place where locks do not hold.
        can_open = can_open and (finding.level != "fault" or finding.check in ("disk", "rights"))
        yield finding
    if can_open:
        async for finding in _inside(options):
            yield finding
    if options.model:
        yield await _model()


async def _inside(options: argparse.Namespace) -> AsyncGenerator[Finding, None]:
    try:
        async with opened(options) as store:
            if not options.store.startswith("file:"):
                yield Finding("ok", "schema", "as this version of perdure needs it")
            upkeep = upkeep_of(store)
            async for finding in examine_content(upkeep, frames_after_ms=options.frames_after):
                yield finding
    except SchemaError as error:
        yield schema_fault(error, options.store)
    except PerdureError as error:
        yield Finding("fault", "store", str(error), error.hint)


async def _model() -> Finding:
    backend = _configured()
    if isinstance(backend, Finding):
        return backend
    try:
        return await examine_model(backend)
    finally:
        await backend.aclose()


def _configured() -> Backend | Finding:
    chosen = chosen_backend()
    if chosen == "scripted":
        told = "no model is configured that could be asked"
        way_out = (
            "set OPENAI_MODEL, and OPENAI_API_KEY or OPENAI_BASE_URL; or the same of ANTHROPIC_"
        )
        return Finding("fault", "model", told, way_out)
    from perdure.backends.retry import BackendRetry

    once = BackendRetry(tries_max=1, request_timeout_ms=MODEL_TIMEOUT_MS)
    try:
        return model_backend(chosen, retry=once)
    except UsageError as error:
        return Finding("fault", "model", "no model is configured that could be asked", str(error))
