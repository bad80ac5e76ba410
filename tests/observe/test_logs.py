"""A line of a log holds no credential, wherever in it the credential stands."""

from __future__ import annotations

import io
import logging

from perdure.observe.logs import MaskingFormatter

KEY = "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90"


def line_of(message: str, *arguments: object, error: Exception | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(MaskingFormatter("%(levelname)s: %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning(message, *arguments, exc_info=error)
    return stream.getvalue()


def test_arguments_are_masked_and_ordinary_words_stay() -> None:
    assert line_of("asked %s with %s", "the model", KEY) == (
        "WARNING: asked the model with [redacted]\n"
    )


def test_tracebacks_are_masked() -> None:
    try:
        raise ConnectionError(f"postgresql://ann:{KEY}@db.example/runs is away")
    except ConnectionError as error:
        line = line_of("failed", error=error)
    assert "Traceback" in line
    assert "db.example" in line
    assert KEY not in line
