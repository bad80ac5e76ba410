"""Log lines without credentials: the last pass of `credentials`, for a logging handler."""

from __future__ import annotations

import logging

from perdure.observe.credentials import mask_text


class MaskingFormatter(logging.Formatter):
    """Formats as `logging.Formatter` does, then masks what looks like a credential.

    It sees the line as it is written, with the messages of exceptions and their tracebacks. Take
    it as the formatter of your handlers; `perdure serve` does.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked line."""
        return mask_text(super().format(record))
