"""Names of a package that are loaded when they are first used: importing it costs little."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package; `modules` says which module has which names.

    A module may itself be a name of its own package, as `frames` is one of `perdure.core`.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(home)
        value = getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")
        setattr(sys.modules[package], name, value)
        return value

    return load
