"""What a provider's error object says: its code, its status, and whether trying again can help."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Final, NamedTuple, TypeGuard

from perdure.core.records import JsonValue

PERMANENT: Final = frozenset(
    {
        "access_denied",
        "authentication_error",
        "billing_error",
        "billing_hard_limit_reached",
        "bio_policy",
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "data_residency_mismatch",
        "empty_image_file",
        "image_content_policy_violation",
        "image_file_not_found",
        "image_file_too_large",
        "image_parse_error",
        "image_too_large",
        "image_too_small",
        "insufficient_quota",
        "invalid_api_key",
        "invalid_base64_image",
        "invalid_image",
        "invalid_image_format",
        "invalid_image_mode",
        "invalid_image_url",
        "invalid_prompt",
        "invalid_request_error",
        "misalignment_policy_violation",
        "model_not_found",
        "not_found_error",
        "permission_denied",
        "permission_error",
        "request_too_large",
        "unsupported_image_media_type",
        "unsupported_value",
    }
)
"""Codes and types of errors that the same call meets again, whatever the status."""

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_STATUS = re.compile("[45][0-9][0-9]")


class ProviderError(NamedTuple):
    """An error object, read. `code` is '' and `status` 0 where it names none."""

    code: str
    status: int
    permanent: bool

    def may_pass(self, retry_statuses: Collection[int]) -> bool:
        """Tell whether the same call may succeed later."""
        return not self.permanent and (not self.status or self.status in retry_statuses)


def provider_error(document: JsonValue) -> ProviderError | None:
    """Return the error that a JSON document `{"error": …}` carries, None if it carries none."""
    fields = fields_of(document)
    if not fields.get("error"):
        return None
    error = fields_of(fields["error"])
    named = (error.get("code"), error.get("type"), fields.get("error_type"))
    codes = [name for name in named if isinstance(name, str) and _CODE.fullmatch(name)]
    numbers = (str(error.get(key)) for key in ("status", "status_code", "code"))
    statuses = [int(number) for number in numbers if _STATUS.fullmatch(number)]
    return ProviderError(
        codes[0] if codes else "",
        statuses[0] if statuses else 0,
        not PERMANENT.isdisjoint(codes),
    )


def read_error(body: str) -> ProviderError | None:
    """Return the error in the body of a response, None if there is none to be read."""
    try:
        return provider_error(json.loads(body))
    except (ValueError, RecursionError):
        return None


def is_object(value: JsonValue) -> TypeGuard[dict[str, JsonValue]]:
    """Tell whether `value` is a JSON object."""
    return isinstance(value, dict)


def fields_of(value: JsonValue) -> dict[str, JsonValue]:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if is_object(value) else {}
