"""The page of the public names, written from their signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final

import perdure
from docs.api_names import CONSTANTS, ELSEWHERE, GROUPS, OF_RUN_STORE
from docs.markdown import code, in_one_line, opening_of, page, table
from perdure import frames

LINE_CHARACTERS_MAX: Final = 88

Function = ast.FunctionDef | ast.AsyncFunctionDef


def definition_of(value: Any) -> ast.ClassDef | Function:
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    assert isinstance(node, ast.ClassDef | Function)
    return node


def argument_text(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{kind}" + (f" = {ast.unparse(default)}" if default else "")


def arguments_of(node: Function) -> list[str]:
    """Return the arguments of a function as a caller sees them."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    missing = len(positional) - len(given.defaults)
    defaults: list[ast.expr | None] = [*([None] * missing), *given.defaults]
    texts = [
        argument_text(argument, default)
        for argument, default in zip(positional, defaults, strict=True)
        if argument.arg != "self"
    ]
    if given.vararg:
        texts.append(f"*{argument_text(given.vararg, None)}")
    elif given.kwonlyargs:
        texts.append("*")
    texts.extend(map(argument_text, given.kwonlyargs, given.kw_defaults))
    if given.kwarg:
        texts.append(f"**{argument_text(given.kwarg, None)}")
    return texts


def signature(node: Function, name: str) -> str:
    """Return how a function is called, with an argument a line where one line is too short."""
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    answer = (
        "" if node.name == "__init__" else f" -> {ast.unparse(node.returns or ast.Name('Any'))}"
    )
    arguments = arguments_of(node)
    line = f"{prefix}{name}({', '.join(arguments)}){answer}"
    if len(line) <= LINE_CHARACTERS_MAX:
        return line
    inner = ",\n    ".join(arguments)
    return f"{prefix}{name}(\n    {inner},\n){answer}"


def functions_of(node: ast.ClassDef) -> list[Function]:
    return [each for each in node.body if isinstance(each, Function)]


def is_property(node: Function) -> bool:
    return any("property" in ast.unparse(each) for each in node.decorator_list)


def how_made(name: str, node: ast.ClassDef) -> str | None:
    """Return the fields of a record, or the call that makes an object of a class."""
    if any("Protocol" in ast.unparse(parent) for parent in node.bases):
        return None
    fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
    if fields:
        return code("\n".join([name, *(f"    {field}" for field in fields)]))
    made = next((each for each in functions_of(node) if each.name == "__init__"), None)
    return code(signature(made, name)) if made is not None and made.args.kwonlyargs else None


def attributes_of(node: ast.ClassDef) -> Iterator[str]:
    for each in functions_of(node):
        if is_property(each) and not each.name.startswith("_") and each.returns is not None:
            text = in_one_line(ast.get_docstring(each) or "")
            yield f"- `{each.name}: {ast.unparse(each.returns)}`" + (f": {text}" if text else "")


def methods_of(name: str, node: ast.ClassDef) -> Iterator[str]:
    """Yield the blocks of every public method that has a contract of its own."""
    for each in functions_of(node):
        text = ast.get_docstring(each)
        if each.name.startswith("_") or is_property(each) or text is None:
            continue
        yield f"#### {name}.{each.name}"
        yield code(signature(each, each.name))
        yield text


def class_blocks(name: str, value: Any) -> list[str]:
    node = definition_of(value)
    assert isinstance(node, ast.ClassDef)
    made = how_made(name, node)
    blocks = [made] if made else []
    blocks.append(inspect.getdoc(value) or "")
    if name in OF_RUN_STORE:
        return blocks
    attributes = list(attributes_of(node))
    if attributes:
        blocks.append("\n".join(attributes))
    return [*blocks, *methods_of(name, node)]


def frame_rows() -> Iterator[tuple[str, str]]:
    """Yield the functions that make what a producer yields."""
    for name, value in vars(frames).items():
        if not inspect.isfunction(value) or name == "part_frame":
            continue
        node = definition_of(value)
        if isinstance(node, Function) and node.returns and ast.unparse(node.returns) == "Frame":
            yield f"`frames.{name}({', '.join(arguments_of(node))})`", opening_of(value)


def name_blocks(path: str) -> Sequence[str]:
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(module or "perdure"), name)
    heading = f"### {path}"
    if isinstance(value, ModuleType):
        return heading, opening_of(value), table(("call", "meaning"), frame_rows())
    if inspect.isfunction(value):
        node = definition_of(value)
        assert isinstance(node, Function)
        return heading, code(signature(node, name)), inspect.getdoc(value) or ""
    return heading, *class_blocks(name, value if isinstance(value, type) else type(value))


def api_page() -> str:
    opening = """
What can be imported from `perdure`, and below it what is public of its other modules. Lengths are
in milliseconds and end in `_ms`; moments are ISO-8601 text; everything behind the second parameter
is given by keyword. A default in capitals is a [limit](limits.md).
"""
    blocks: list[str] = []
    for title, names in {**GROUPS, **ELSEWHERE}.items():
        blocks.append(f"## {title}")
        for name in names:
            blocks.extend(name_blocks(name))
    described = {*CONSTANTS, *(name for names in GROUPS.values() for name in names)}
    failures = sorted(set(perdure.__all__) - described)
    return page(
        "The public names",
        opening,
        *blocks,
        "## Constants and types",
        table(("name", "meaning"), [(f"`{name}`", text) for name, text in CONSTANTS.items()]),
        "## Errors",
        "Their codes, and the way out of each, stand on [the page of errors](errors.md).",
        table(
            ("name", "meaning"),
            [(f"`{name}`", opening_of(getattr(perdure, name))) for name in failures],
        ),
    )
