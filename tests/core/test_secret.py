"""A secret shows itself only to who asks for it by name."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from dataclasses import asdict, replace

import pytest

from perdure.agent.sessions import new_session
from perdure.core.jsonvalue import encode_value
from perdure.core.secret import Secret, redacted, secret_of
from perdure.core.wire import to_wire
from perdure.errors import NotSerializableError

HIDDEN = "correct horse battery staple"


def test_no_form_of_it_shows_the_text(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(HIDDEN)
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("a raw event: %r", {"token": secret})
    shown = [repr(secret), str(secret), f"{secret:>40}", f"{secret}", caplog.text]
    shown.append(json.dumps(to_wire({"a": [secret]})))
    assert not any(HIDDEN in text for text in shown)
    assert to_wire({"a": [secret]}) == {"a": ["[redacted]"]}


def test_it_is_revealed_on_request() -> None:
    assert Secret(HIDDEN).reveal() == HIDDEN


def test_it_is_not_stored_or_pickled_by_accident() -> None:
    with pytest.raises(NotSerializableError):
        encode_value(Secret(HIDDEN), name="value")
    with pytest.raises(TypeError):
        pickle.dumps(Secret(HIDDEN))
    with pytest.raises(TypeError):
        Secret(HIDDEN).__getstate__()


def test_a_copy_of_what_has_one_shows_no_more() -> None:
    session = replace(new_session("played", session_id="s"), resume_token=Secret(HIDDEN))
    for copied in (asdict(session), copy.copy(Secret(HIDDEN)), copy.deepcopy(session)):
        assert HIDDEN not in repr(copied)
    assert asdict(session)["resume_token"] == Secret(HIDDEN)


def test_secrets_are_equal_if_their_texts_are() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")


def test_its_recorded_form_is_json_that_leads_back_to_it() -> None:
    kept = json.loads(json.dumps(Secret(HIDDEN).recorded()))
    assert secret_of(kept) == Secret(HIDDEN)


@pytest.mark.parametrize(
    "value",
    ["text", None, 7, [], {}, {"$secret": 1}, {"$secret": "x", "more": 1}, {"secret": "x"}],
)
def test_what_only_looks_like_a_recorded_secret_stays_as_it_is(value: object) -> None:
    assert secret_of(value) is value
    assert redacted({"a": (value,)}) == {"a": [value]}


def test_who_looks_at_a_recorded_value_sees_no_secret_at_any_depth() -> None:
    value = {"a": [{"b": Secret(HIDDEN).recorded()}, "c"]}
    assert redacted(value) == {"a": [{"b": "[redacted]"}, "c"]}
    assert HIDDEN in json.dumps(value)
