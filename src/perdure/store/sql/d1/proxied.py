"""A binding that is a JavaScript object, as Pyodide hands it over where no SDK wraps it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from perdure.store.sql.d1.binding import D1Binding


def python_binding(binding: D1Binding) -> D1Binding:
    """Return `binding`, or what makes one of it if it is a bare JavaScript object."""
    ffi = sys.modules.get("pyodide.ffi")
    if ffi is not None and isinstance(binding, ffi.JsProxy):
        return _ProxiedBinding(binding)
    return binding


class _ProxiedBinding:
    """The surface of a binding over its JavaScript object.

    Values cross as JSON: what None becomes, and how NULL comes back, differs from one version of
    Pyodide to the next.
    """

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    def prepare(self, sql: str) -> _ProxiedStatement:
        return _ProxiedStatement(self._proxy.prepare(sql))

    async def batch(self, statements: Sequence[_ProxiedStatement]) -> Sequence[Any]:
        given = _javascript().Array.new()
        for statement in statements:
            given.push(statement.proxy)
        results: Sequence[Any] = _plain(await self._proxy.batch(given))
        return results


class _ProxiedStatement:
    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy

    def bind(self, *values: Any) -> _ProxiedStatement:
        js = _javascript()
        given = js.JSON.parse(json.dumps(values))
        return _ProxiedStatement(js.Reflect.apply(self.proxy.bind, self.proxy, given))

    async def first(self) -> Any:
        return _plain(await self.proxy.first())

    async def all(self) -> Any:
        return _plain(await self.proxy.all())

    async def run(self) -> Any:
        return _plain(await self.proxy.run())


def _plain(answer: Any) -> Any:
    return json.loads(_javascript().JSON.stringify(answer))


def _javascript() -> Any:
    """Return the global scope of JavaScript."""
    return import_module("js")
