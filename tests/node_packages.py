"""The packages of tests/node, installed when a test first asks for them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NODE_TESTS = Path(__file__).with_name("node")


def need_node_packages() -> None:
    """Install the packages, unless they are there as the lock file has them.

    Where that cannot be done the test is skipped, in CI failed.
    """
    if shutil.which("npm") is None:
        give_up("needs npm")
    try:
        _install()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        give_up(f"the packages of tests/node cannot be installed: {error.stderr!r}")


def give_up(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (nothing is skipped in CI)", pytrace=False)
    pytest.skip(reason)


def _install() -> None:
    with (NODE_TESTS / "package.json").open() as only_one:
        fcntl.flock(only_one, fcntl.LOCK_EX)
        installed = NODE_TESTS / "node_modules" / ".package-lock.json"
        wanted = NODE_TESTS / "package-lock.json"
        if installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime:
            return
        command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=NODE_TESTS, check=True, capture_output=True, timeout=100)
        installed.touch()


def python_wheel(name: str, version: str) -> Path:
    """Return a wheel of pure Python for an interpreter that is none of ours, fetched once.

    It is not installed beside our packages: it may be made for that interpreter alone.
    """
    folder = NODE_TESTS / "node_modules" / ".wheels"
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", str(folder), f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            give_up(f"{name} cannot be fetched: {done.stderr}")
    return next(folder.glob(pattern))
