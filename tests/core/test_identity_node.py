"""Canonical JSON against the `JSON.stringify` of Node, over thousands of generated values."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from perdure.core.identity import canonical_json
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import INTEGER_MAX
from perdure.core.records import JsonValue

JUDGE = Path(__file__).parent / "canonical_judge.mjs"
VALUES = 6_000
TAG = "\0"

CHARACTERS = [
    *map(chr, range(0x30)),
    *'09aAzZ\\/"_~\x7f\x80éß€Ω中\u2028\u2029\ud7ff\ue000\ufffd\uffff',
    *"😀🚆\U00010000\U0010ffff",
    *"\ud800\ud83d\udbff\udc00\ude00\udfff",
]
INDEX_LIKE = [
    *["0", "1", "2", "9", "10", "99", "100"],
    *["4294967293", "4294967294", "4294967295", "4294967296", "9007199254740991"],
    *["00", "01", "-0", "-1", "+1", "1.0", "1e3", "0x1", "1_0", " 1", "1 ", "١", "１", "²"],
    *["", "length", "constructor", "toJSON", "__bigint"],
]


class Generator:
    """Values that are hard to write alike, from a fixed seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def value(self, depth: int = 4) -> JsonValue:
        if depth and self._random.random() < 0.5:
            return self._random.choice([self.array, self.object])(depth - 1)
        return self._random.choice([self.text, self.double, self.integer, self.atom])()

    def text(self) -> str:
        return "".join(self._random.choices(CHARACTERS, k=self._random.randrange(8)))

    def atom(self) -> JsonValue:
        return self._random.choice([None, True, False])

    def integer(self) -> int:
        bits = self._random.choice([1, 8, 31, 32, 33, 52, 53])
        return self._random.randint(-(2**bits) + 1, 2**bits - 1)

    def double(self) -> float:
        while True:
            value = self._random.choice([self._bits, self._power, self._whole, self._short])()
            if math.isfinite(value):
                return value

    def _bits(self) -> float:
        (value,) = struct.unpack(">d", self._random.randbytes(8))
        return float(value)

    def _power(self) -> float:
        """A power of ten near the places where the layout changes, or a neighbour of it."""
        value = float(f"{self._random.choice([1, -1, 1.5, 9.99])}e{self._random.randint(-9, 24)}")
        return math.nextafter(value, self._random.choice([0.0, value, math.inf]))

    def _whole(self) -> float:
        return float(self._random.randint(-(2**70), 2**70) >> self._random.randrange(70))

    def _short(self) -> float:
        return round(self._random.uniform(-1e6, 1e6), self._random.randrange(8)) or -0.0

    def array(self, depth: int) -> list[JsonValue]:
        return [self.value(depth) for _ in range(self._random.randrange(5))]

    def object(self, depth: int) -> dict[str, JsonValue]:
        result: dict[str, JsonValue] = {}
        # By what the key is once read: no two of an object are one text in JavaScript.
        known: set[bytes] = set()
        for _ in range(self._random.randrange(7)):
            key = self.text() if self._random.random() < 0.5 else self._random.choice(INDEX_LIKE)
            units = key.encode("utf-16-be", "surrogatepass")
            if units not in known and key != TAG:
                known.add(units)
                result[key] = self.value(depth)
        return result

    def quantity(self) -> dict[str, int]:
        """An object that holds an integer which no double holds."""
        size = self._random.randint(INTEGER_MAX + 1, 10**30)
        return {"n": self._random.choice([size, -size, INTEGER_MAX + 1, -INTEGER_MAX - 1])}


def tagged(value: JsonValue) -> JsonValue:
    """Return `value` with every number that needs care in the judge's notation."""
    if isinstance(value, float):
        return {TAG: ["double", struct.pack(">d", value).hex()]}
    if type(value) is int and abs(value) > INTEGER_MAX:
        return {TAG: ["bigint", str(value)]}
    if isinstance(value, list):
        return [tagged(item) for item in value]
    if isinstance(value, dict):
        return {key: tagged(item) for key, item in value.items()}
    return value


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None and os.environ.get("CI"):
        pytest.fail("Node is missing, and the judge of canonical JSON runs on it")
    if found is None:
        pytest.skip("needs Node to judge canonical JSON")
    return found


def judge(node: str, lines: list[str], path: Path) -> list[str]:
    """Return Node's canonical text of each line, from one process."""
    path.write_text("\n".join(lines), encoding="ascii")
    answer = subprocess.run([node, JUDGE, path], check=True, capture_output=True, timeout=60)
    # Not `splitlines`: the texts hold line separators.
    return answer.stdout.decode("utf-8").removesuffix("\n").split("\n")


def test_node_writes_every_generated_value_as_canonical_json_does(
    node: str, tmp_path: Path
) -> None:
    generator = Generator(20_260_131)
    values = [generator.value() for _ in range(VALUES - 500)]
    values += [generator.quantity() for _ in range(500)]
    answers = judge(node, [json.dumps(tagged(value)) for value in values], tmp_path / "values")
    assert len(answers) == VALUES
    assert [canonical_json(value) for value in values] == answers


def test_node_writes_every_generated_double_as_canonical_json_does(
    node: str, tmp_path: Path
) -> None:
    generator = Generator(7)
    values = [generator.double() for _ in range(VALUES)]
    answers = judge(node, [json.dumps(tagged(value)) for value in values], tmp_path / "values")
    assert [canonical_json(value) for value in values] == answers


def test_node_reads_stored_text_as_the_value_that_was_stored(node: str, tmp_path: Path) -> None:
    generator = Generator(42)
    values = [generator.value() for _ in range(2_000)]
    answers = judge(node, [encode_value(value) for value in values], tmp_path / "values")
    assert [canonical_json(value) for value in values] == answers
