"""Time as text, and tokens that nobody draws twice."""

from __future__ import annotations

import os

from perdure.core import effects


def test_moments_are_iso_text_in_milliseconds_and_read_back() -> None:
    assert effects.iso_time(1_769_850_307_042) == "2026-01-31T09:05:07.042Z"
    for moment_ms in (0, 999, 1_769_850_307_042, 253_402_300_799_999):
        assert effects.epoch_ms(effects.iso_time(moment_ms)) == moment_ms


def test_moments_sort_as_text() -> None:
    moments = [0, 5, 50, 500, 1_000, 10_000, 1_769_850_307_042, 1_769_850_307_043]
    assert sorted(map(effects.iso_time, moments)) == [effects.iso_time(each) for each in moments]


def test_tokens_are_long_and_all_different() -> None:
    tokens = [effects.new_token() for _ in range(1_000)]
    assert len(set(tokens)) == len(tokens)
    assert {len(token) for token in tokens} == {32}
    assert all(int(token, 16) >= 0 for token in tokens)


def test_a_forked_process_draws_other_tokens_than_its_parent() -> None:
    effects.new_token()
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sending, "".join(effects.new_token() for _ in range(100)).encode())
        os._exit(0)
    os.close(sending)
    drawn = b"".join(iter(lambda: os.read(receiving, 4_096), b"")).decode()
    os.waitpid(child, 0)
    theirs = {drawn[at : at + 32] for at in range(0, len(drawn), 32)}
    assert len(theirs) == 100
    assert theirs.isdisjoint(effects.new_token() for _ in range(100))


def test_a_jittered_length_stays_within_its_fraction() -> None:
    lengths = [effects.jittered(1_000, 0.5) for _ in range(200)]
    assert 500 <= min(lengths) < max(lengths) <= 1_500


def test_shuffling_loses_nothing() -> None:
    assert sorted(effects.shuffled(range(100))) == list(range(100))
