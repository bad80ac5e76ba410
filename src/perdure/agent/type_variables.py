"""The type variables of agent tasks: what the states, actions and results of an adapter are.

Left out they are Any. Only type checkers are told so: before Python 3.13 there is no other way to
say it without a package.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    StateT = TypeVar("StateT", default=Any)
    ActionT = TypeVar("ActionT", default=Any)
    ActionResultT = TypeVar("ActionResultT", default=Any)
    StateT_co = TypeVar("StateT_co", covariant=True, default=Any)
    ActionT_co = TypeVar("ActionT_co", covariant=True, default=Any)
    ActionResultT_co = TypeVar("ActionResultT_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    StateT = TypeVar("StateT")
    ActionT = TypeVar("ActionT")
    ActionResultT = TypeVar("ActionResultT")
    StateT_co = TypeVar("StateT_co", covariant=True)
    ActionT_co = TypeVar("ActionT_co", covariant=True)
    ActionResultT_co = TypeVar("ActionResultT_co", covariant=True)

T = TypeVar("T")

MaybeAwaitable: TypeAlias = T | Awaitable[T]
"""What a method that may be plain or async returns."""
