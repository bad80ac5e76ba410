"""The packages of tests/node, and others that few tests need, fetched when a test asks for them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _only_one() -> Iterator[None]:
    with (NODE_TESTS / "package.json").open() as only_one:
        fcntl.flock(only_one, fcntl.LOCK_EX)
        yield


def _install() -> None:
    with _only_one():
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


def npm_package(name: str, version: str) -> Path:
    """Return the folder of a package that few tests need, fetched once; none of its scripts run."""
    if shutil.which("npm") is None:
        give_up("needs npm")
    folder = NODE_TESTS / "node_modules" / ".packages" / f"{Path(name).name}-{version}"
    with _only_one():
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
                _unpack(f"{name}@{version}", Path(fresh))
                (Path(fresh) / "package").rename(folder)
    return folder


def _unpack(package: str, folder: Path) -> None:
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        give_up(f"{package} cannot be fetched: {done.stderr}")
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
