"""The code on the pages: all of Python is run, as a program (`run`) or by pytest (`pytest`)."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, Block, blocks_of

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.words[:1] == ["python"]]
RUN = [block for block in PYTHON if "run" in block.words]
TESTS = [block for block in PYTHON if "pytest" in block.words]
LANGUAGES = {"diff", "js", "json", "python", "sh", "text"}
TIME_LIMIT_S = 60
ENVIRONMENT = {"OPENAI_API_KEY": "a key that nobody is asked about"}


def name_of(block: Block) -> str:
    return block.name


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_the_block_says_what_it_is(block: Block) -> None:
    assert block.words, "a block without a language"
    assert block.words[0] in LANGUAGES


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_the_block_compiles(block: Block) -> None:
    compile(block.text, block.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_what_the_block_imports_of_the_package_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "perdure":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("block", RUN, ids=name_of)
def test_the_block_runs_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (block.output or "")
    assert done.stderr == ""


@pytest.mark.parametrize("block", TESTS, ids=name_of)
def test_the_tests_of_the_block_pass(block: Block, tmp_path: Path) -> None:
    (tmp_path / "test_block.py").write_text(block.text, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "asyncio_mode=auto", "-p", "perdure.pytest_plugin"]
    done = subprocess.run(
        [*command, "-p", "pytest_asyncio.plugin"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("block", [block for block in BLOCKS if "sh" in block.words], ids=name_of)
def test_the_block_of_a_shell_waits_for_the_server_that_it_begins(block: Block) -> None:
    _, begins, then = re.sub(r"\\\n", " ", block.text).partition(" &\n")
    for line in then.splitlines() if begins else ():
        assert not line.startswith("curl ") or "--retry-connrefused" in line, line


def test_every_python_block_is_run() -> None:
    assert not [block.name for block in PYTHON if block not in RUN + TESTS]
