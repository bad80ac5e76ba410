"""The tree keeps the rules of the house; each rule is shown to find its fault.

A finding that the design wants stands in `EXCEPTIONS` with its reason; that list only shrinks.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import PurePosixPath

import pytest

from tests.tidy_rules import (
    FUNCTION_LINES_MAX,
    LINE_CHARACTERS_MAX,
    MODULE_LINES_MAX,
    PYTHON_RULES,
    ROOT,
    SUPPRESSION,
    TEXT_RULES,
    Finding,
    Rule,
    Source,
    class_has_few_public_methods,
    comments,
    file_name_says_what_lives_there,
    function_is_shallow,
    function_is_short,
    function_takes_few_parameters,
    line_is_short,
    module_is_short,
    module_opens_with_a_sentence,
    nesting,
    nothing_is_left_to_do,
    only_some_places_need_other_packages,
    protocol_fits_on_a_screen,
    sources,
    speaks_of_the_project_alone,
    suppression_has_a_reason,
    texts,
)

EXCEPTIONS = {
    (
        "class_has_few_public_methods",
        "src/perdure/store/files.py:FileStore",
    ): "the 20 of the contract, the openers of the lease keeper's handle and the upkeep, its own",
    (
        "class_has_few_public_methods",
        "src/perdure/store/memory.py:MemoryStore",
    ): "the 20 of the contract, and the openers of the lease keeper's handle and the upkeep",
    (
        "class_has_few_public_methods",
        "src/perdure/store/sql/store.py:SqlStore",
    ): "the 20 of the contract, and the openers of the lease keeper's handle and the upkeep",
    (
        "function_takes_few_parameters",
        "src/perdure/turn/engine.py:ChatTurnEngine.__init__",
    ): "settings of an engine, each with its default; a signature of the design",
    (
        "function_takes_few_parameters",
        "src/perdure/turn/durable.py:run_durable_turn",
    ): "the reference's call; a signature of the design",
    (
        "function_takes_few_parameters",
        "src/perdure/turn/reference.py:ReferenceChatTurnEngine.run_turn",
    ): "the reference's call; a signature of the design",
}
"""Why a rule, by its name, does not hold at a place."""

SUPPRESSIONS_PER_1000_LINES_MAX = 3


@cache
def findings(rule: Rule) -> tuple[Finding, ...]:
    """Return every place of the repository that breaks the rule, accepted or not."""
    where = sources() if rule in PYTHON_RULES else texts()
    return tuple(finding for source in where for finding in rule(source))


def rule_name(rule: Rule) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", PYTHON_RULES + TEXT_RULES, ids=rule_name)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    assert sources(), "the test looks at the wrong folder"
    broken = [
        f"{finding.where} {finding.what}"
        for finding in findings(rule)
        if (rule.__name__, finding.where) not in EXCEPTIONS
    ]
    assert not broken, "\n".join(["", *broken])


def test_every_exception_is_still_needed() -> None:
    needed = {
        (rule.__name__, finding.where)
        for rule in PYTHON_RULES + TEXT_RULES
        for finding in findings(rule)
    }
    assert EXCEPTIONS.keys() <= needed


@pytest.mark.parametrize("root", ["src/", "tests/"])
def test_suppressions_are_rare(root: str) -> None:
    ours = [source for source in sources() if source.path.startswith(root)]
    lines = sum(len(source.text.splitlines()) for source in ours)
    count = sum(
        SUPPRESSION.search(comment) is not None
        for source in ours
        for _, comment in comments(source)
    )
    assert count * 1_000 <= SUPPRESSIONS_PER_1000_LINES_MAX * lines


FLOORS = {path.name for path in (ROOT / "src/perdure").iterdir() if path.is_dir()}
MODULES = {
    path.relative_to(ROOT / "src/perdure").with_suffix("").as_posix()
    for path in (ROOT / "src/perdure").rglob("*")
    if path.is_dir() or path.suffix == ".py"
}
ABOUT_THE_HOUSE = {"test_bare_install", "test_public_names", "test_tidy"}


def test_tests_mirror_what_they_test() -> None:
    """`core/test_frames.py`, or `core/test_frames_random.py`, is about `core/frames`."""
    strays = []
    for source in sources():
        if not source.path.startswith("tests/"):
            continue
        path = PurePosixPath(source.path).relative_to("tests")
        if not path.name.startswith("test_") or path.stem in ABOUT_THE_HOUSE:
            continue
        if len(path.parts) > 1 and path.parts[0] not in FLOORS:
            continue
        subject = (path.parent / path.stem.removeprefix("test_")).as_posix()
        if not any(subject == name or subject.startswith(f"{name}_") for name in MODULES):
            strays.append(source.path)
    assert not strays, "no module of this name"


PLANTED: list[tuple[Rule, Source]] = [
    (module_is_short, Source("a.py", "x = 1\n" * (MODULE_LINES_MAX + 1))),
    (module_opens_with_a_sentence, Source("a.py", "import os\n")),
    (file_name_says_what_lives_there, Source("src/perdure/core/utils.py", "")),
    (function_is_short, Source("a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX)),
    (function_takes_few_parameters, Source("a.py", "def f(a, b, c, *, d, e, f, g, h, i): ...")),
    (
        function_is_shallow,
        Source(
            "a.py",
            "def f():\n for a in b:\n  if a:\n   try:\n    with a:\n     while a: g()\n"
            "   finally: g()\n",
        ),
    ),
    (
        class_has_few_public_methods,
        Source("a.py", "class A:\n" + "".join(f"  def m{n}(self): ...\n" for n in range(21))),
    ),
    (
        protocol_fits_on_a_screen,
        Source(
            "a.py",
            "class A(Protocol[T]):\n" + "".join(f"  def m{n}(self): ...\n" for n in range(21)),
        ),
    ),
    (suppression_has_a_reason, Source("a.py", f"x = 1  # {'noqa'}: E501\n")),
    (suppression_has_a_reason, Source("a.py", f"x = 1  # type: {'ignore'}  # whatever it says\n")),
    (suppression_has_a_reason, Source("a.py", f"# ruff: {'noqa'}: E501 as it is generated\n")),
    (only_some_places_need_other_packages, Source("src/perdure/core/a.py", "import httpx2.x")),
    (only_some_places_need_other_packages, Source("src/perdure/web/a.py", "from uvicorn import x")),
    (line_is_short, Source("a.sql", "-" * (LINE_CHARACTERS_MAX + 1))),
    (nothing_is_left_to_do, Source("a.md", "A list " + "TO" + "DO.")),
    (speaks_of_the_project_alone, Source("a.json", "https://registry" + ".npmjs.org/a")),
    (speaks_of_the_project_alone, Source("a.md", "see /ro" + "ot/notes")),
    (speaks_of_the_project_alone, Source("a.md", "as iss" + "ue 7 says")),
]


@pytest.mark.parametrize(("rule", "source"), PLANTED)
def test_the_rule_finds_a_planted_fault(rule: Rule, source: Source) -> None:
    assert list(rule(source))


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _ in PLANTED} == {*PYTHON_RULES, *TEXT_RULES}


@pytest.mark.parametrize(
    "text",
    [
        "x = f()  # type: ignore[no-any-return]  # the driver has no types\n",
        "x = f()  # noqa: ASYNC230 the file is read before the loop runs\n",
    ],
)
def test_a_suppression_by_name_with_a_reason_is_accepted(text: str) -> None:
    assert not list(suppression_has_a_reason(Source("a.py", text)))


def test_elif_is_no_deeper_than_if() -> None:
    tree = ast.parse("if a: b()\nelif c: d()\nelif e:\n for f in g: h()\nelse: i()\n")
    assert nesting(tree.body) == 2
