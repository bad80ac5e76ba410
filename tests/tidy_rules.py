"""The rules of the house that a program can check, each a function from a file to its faults."""

from __future__ import annotations

import ast
import gc
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
LINE_CHARACTERS_MAX = 100
PUBLIC_METHODS_MAX = 20
PROTOCOL_METHODS_MAX = 20
PARAMETERS_MAX = 8
NESTING_MAX = 4

PACKAGES_ALLOWED = {
    # For type checkers alone, which bring it along: it is imported by none who runs.
    "src/perdure/agent/type_variables": {"typing_extensions"},
    "src/perdure/backends/anthropic": {"httpx2"},
    "src/perdure/backends/endpoint": {"httpx2"},
    "src/perdure/backends/headers": {"httpx2"},
    "src/perdure/backends/openai": {"httpx2"},
    "src/perdure/backends/responses": {"httpx2"},
    "src/perdure/durable/cron": {"cronsim"},
    "src/perdure/encryption": {"cryptography"},
    "src/perdure/engines/dbos": {"dbos"},
    "src/perdure/engines/langgraph": {"langchain_core", "langgraph"},
    "src/perdure/engines/openai_agents": {"agents", "openai", "pydantic"},
    "src/perdure/engines/pydantic_ai": {"pydantic", "pydantic_ai"},
    "src/perdure/engines/restate": {"restate"},
    "src/perdure/observe/otel": {"opentelemetry"},
    "src/perdure/observe/prices": {"genai_prices"},
    "src/perdure/store/sql/d1/api": {"httpx2"},
    "src/perdure/store/sql/postgres": {"psycopg"},
    "src/perdure/pytest_plugin": {"pytest"},
    "src/perdure/web": {"starlette"},
    "src/perdure/web/dashboard": {"jinja2"},
    "src/perdure/web/fastapi": {"fastapi"},
    "src/perdure/web/shapes": {"pydantic"},
    "src/perdure/web/server": {"uvicorn"},
}
"""The only places that may import something that is not in the standard library."""

FILE_NAMES_FORBIDDEN = {"base", "common", "helper", "helpers", "misc", "util", "utils"}
FOLDERS_PRUNED = {"__pycache__", "build", "dist", "htmlcov", "node_modules", "site", "vendor"}
HIDDEN_FOLDERS_READ = {".ci", ".github"}
LINES_LIMITED = {".css", ".html", ".js", ".mjs", ".py", ".sql", ".toml"}
TEXTS = LINES_LIMITED | {"", ".json", ".md", ".txt", ".yaml", ".yml"}

# Put together from pieces, so that this file does not hold the words that it forbids.
MARKS_FORBIDDEN = re.compile(rf"\b({'TO' + 'DO'}|{'FIX' + 'ME'}|{'X' * 3})\b")
WORDS_FORBIDDEN = {
    "names the host of a package registry": re.compile(
        rf"{'registry'}\.(npmjs|yarnpkg)\.|{'pypi'}\.org|{'python'}hosted\.org"
    ),
    "names a path of one machine": re.compile(rf"(?<![\w.]){'/'}(home|root|Users|work){'/'}"),
    "names an issue, which a reader of the code cannot see": re.compile(rf"\b{'issue'} #?\d"),
}
SUPPRESSION = re.compile(
    r"(type|pyright): ?ignore(\[[\w, -]+\])?|noqa(: ?[A-Z]+\d+(, ?[A-Z]+\d+)*)?"
)
FILE_SUPPRESSION = re.compile(r"#\s*(mypy:|pyright: ?(basic|standard|\w+ ?=)|(ruff|flake8): ?noqa)")

BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.If, ast.Match)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Finding(NamedTuple):
    """A place that breaks a rule: a file, or `file:Class.function`."""

    where: str
    what: str


class Source(NamedTuple):
    """A Python file; `path` is relative to the repository."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return _parsed(self.text)


@cache
def _parsed(text: str) -> ast.Module:
    # CPython 3.11 takes what a finalizer does in the middle of it for a fault of its own depth
    # (SystemError): another test's garbage is collected before or after.
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()


# Reading the tree…


def paths() -> Iterator[Path]:
    """Yield every text file of the repository."""
    for folder, names, file_names in os.walk(ROOT):
        names[:] = [
            name
            for name in names
            if name not in FOLDERS_PRUNED
            and (not name.startswith(".") or name in HIDDEN_FOLDERS_READ)
        ]
        for name in file_names:
            if Path(name).suffix in TEXTS:
                yield Path(folder, name)


@cache
def texts() -> tuple[Source, ...]:
    """Return every text of the repository."""
    return tuple(
        Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
        for path in sorted(paths())
        if path.is_file()
    )


@cache
def sources() -> tuple[Source, ...]:
    """Return every Python file of the repository."""
    return tuple(source for source in texts() if source.path.endswith(".py"))


def definitions(
    source: Source, node: ast.AST | None = None, prefix: str = ""
) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield the functions and classes of a file with their qualified names, inner ones too."""
    for child in ast.iter_child_nodes(source.tree if node is None else node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}{child.name}"
            yield f"{source.path}:{name}", child
            yield from definitions(source, child, f"{name}.")
        else:
            yield from definitions(source, child, prefix)


def functions(source: Source) -> Iterator[tuple[str, Function]]:
    for where, node in definitions(source):
        if isinstance(node, Function):
            yield where, node


def classes(source: Source) -> Iterator[tuple[str, ast.ClassDef]]:
    for where, node in definitions(source):
        if isinstance(node, ast.ClassDef):
            yield where, node


def comments(source: Source) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


# Rules of one Python file…


def module_is_short(source: Source) -> Iterator[Finding]:
    count = len(source.text.splitlines())
    if count > MODULE_LINES_MAX:
        yield Finding(source.path, f"has {count} lines, not {MODULE_LINES_MAX} at most")


def module_opens_with_a_sentence(source: Source) -> Iterator[Finding]:
    if not source.text.strip():
        return
    opening = (ast.get_docstring(source.tree) or "").split("\n\n")[0]
    if not opening.endswith("."):
        yield Finding(source.path, "does not open with a sentence that says what lives there")


def file_name_says_what_lives_there(source: Source) -> Iterator[Finding]:
    bad = FILE_NAMES_FORBIDDEN.intersection(PurePosixPath(source.path).with_suffix("").parts)
    if bad:
        yield Finding(source.path, f"is called {bad.pop()}, which says nothing")


def function_is_short(source: Source) -> Iterator[Finding]:
    for where, node in functions(source):
        count = (node.end_lineno or node.lineno) - node.lineno + 1
        if count > FUNCTION_LINES_MAX:
            yield Finding(where, f"has {count} lines, not {FUNCTION_LINES_MAX} at most")


def function_takes_few_parameters(source: Source) -> Iterator[Finding]:
    for where, node in functions(source):
        positional = [*node.args.posonlyargs, *node.args.args]
        names = [each.arg for each in [*positional, *node.args.kwonlyargs]]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > PARAMETERS_MAX:
            yield Finding(where, f"takes {count} parameters, not {PARAMETERS_MAX} at most")


def nesting(statements: Iterable[ast.AST]) -> int:
    """Return how deep blocks stand in blocks; `elif` stands beside its `if`."""
    return max((_depth(node) for node in statements), default=0)


def _depth(node: ast.AST) -> int:
    if isinstance(node, Function | ast.ClassDef | ast.Lambda):
        return 0
    if not isinstance(node, BLOCKS):
        return nesting(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and [type(other) for other in node.orelse] == [ast.If]:
        return max(1 + nesting(node.body), _depth(node.orelse[0]))
    return 1 + nesting(ast.iter_child_nodes(node))


def function_is_shallow(source: Source) -> Iterator[Finding]:
    for where, node in functions(source):
        depth = nesting(node.body)
        if depth > NESTING_MAX:
            yield Finding(where, f"nests {depth} blocks, not {NESTING_MAX} at most")


def methods(node: ast.ClassDef) -> set[str]:
    """Return the names of the methods of a class; a property is none."""
    return {
        each.name
        for each in node.body
        if isinstance(each, Function)
        and not any("property" in ast.unparse(decorator) for decorator in each.decorator_list)
    }


def class_has_few_public_methods(source: Source) -> Iterator[Finding]:
    for where, node in classes(source):
        count = sum(not name.startswith("_") for name in methods(node))
        if not is_protocol(node) and count > PUBLIC_METHODS_MAX:
            yield Finding(where, f"has {count} public methods, not {PUBLIC_METHODS_MAX} at most")


def is_protocol(node: ast.ClassDef) -> bool:
    return any("Protocol" in ast.unparse(base) for base in node.bases)


def protocol_fits_on_a_screen(source: Source) -> Iterator[Finding]:
    for where, node in classes(source):
        count = len(methods(node))
        if is_protocol(node) and count > PROTOCOL_METHODS_MAX:
            yield Finding(where, f"has {count} methods, not {PROTOCOL_METHODS_MAX} at most")


def suppression_has_a_reason(source: Source) -> Iterator[Finding]:
    for number, comment in comments(source):
        if FILE_SUPPRESSION.search(comment):
            yield Finding(source.path, f"line {number} suppresses a rule for a whole file")
        for match in SUPPRESSION.finditer(comment):
            if match.group().endswith(("ignore", "noqa")):
                yield Finding(source.path, f"line {number} suppresses every rule, not one by name")
        rest = SUPPRESSION.sub("", comment)
        if rest != comment and len(re.findall(r"\w+", rest)) < 2:
            yield Finding(source.path, f"line {number} suppresses a rule without a reason")


def only_some_places_need_other_packages(source: Source) -> Iterator[Finding]:
    if not source.path.startswith("src/"):
        return
    allowed = {"perdure", *sys.stdlib_module_names}
    for place, packages in PACKAGES_ALLOWED.items():
        if source.path.startswith((f"{place}/", f"{place}.py")):
            allowed |= packages
    for node in ast.walk(source.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            if name.split(".")[0] not in allowed:
                yield Finding(source.path, f"imports {name}; see PACKAGES_ALLOWED")


# Rules of any text…


def line_is_short(source: Source) -> Iterator[Finding]:
    if PurePosixPath(source.path).suffix in LINES_LIMITED:
        for number, line in enumerate(source.text.splitlines(), 1):
            if len(line) > LINE_CHARACTERS_MAX:
                yield Finding(source.path, f"line {number} has {len(line)} characters")


def nothing_is_left_to_do(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := MARKS_FORBIDDEN.search(line):
            yield Finding(source.path, f"line {number} says {match.group()}")


def speaks_of_the_project_alone(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.text.splitlines(), 1):
        for fault, word in WORDS_FORBIDDEN.items():
            if word.search(line):
                yield Finding(source.path, f"line {number} {fault}")


Rule = Callable[[Source], Iterator[Finding]]
PYTHON_RULES: tuple[Rule, ...] = (
    module_is_short,
    module_opens_with_a_sentence,
    file_name_says_what_lives_there,
    function_is_short,
    function_takes_few_parameters,
    function_is_shallow,
    class_has_few_public_methods,
    protocol_fits_on_a_screen,
    suppression_has_a_reason,
    only_some_places_need_other_packages,
)
TEXT_RULES: tuple[Rule, ...] = (
    line_is_short,
    nothing_is_left_to_do,
    speaks_of_the_project_alone,
)
