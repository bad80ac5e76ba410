"""The model servers of the backends' tests, for turns that ask a provider over real HTTP."""

from __future__ import annotations

from tests.backends.conftest import aimock, aimock_process, server

__all__ = ["aimock", "aimock_process", "server"]
