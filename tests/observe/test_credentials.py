"""Texts that look like credentials are masked wherever they stand; others pass untouched."""

from __future__ import annotations

import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from perdure.core.secret import REDACTED
from perdure.observe.credentials import as_asked, mask_credentials, mask_text, shown
from perdure.observe.shapes import SHAPES

# Put together from pieces, so that no scanner takes this file for a leak.
LOOKALIKES = [
    "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90",
    "sk_" + "live_Ab12Cd34Ef56Gh78Ij90",
    "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2",
    "github_" + "pat_11AAAAAAA0abcdefghijkl",
    "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "xoxb-" + "123456789012-abcdefABCDEF",
    "eyJhbGciOi" + "JIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
    "Bearer " + "a1b2c3d4e5f6g7h8",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    "password=" + "hunter2hunter2",
    '"api_key": "' + 'abcdef123456"',
    "password: '" + "two words here'",
    "AWS_SECRET_ACCESS_KEY=" + "wJalrXUtnFEMI/K7MDENG/bPxRfi",
    "pplx-" + "a1b2c3d4e5f6g7h8i9j0",
    "xapp-" + "1-A111-222-abcdef0123456789",
    "Cookie: " + "session=abcdef; other=123456",
]


@pytest.mark.parametrize("secret", LOOKALIKES)
def test_what_looks_like_a_credential_is_masked(secret: str) -> None:
    masked = mask_text(f"before {secret} after")
    assert masked.startswith("before ")
    assert "[redacted]" in masked
    assert secret not in masked


WORD = "hunter2canary99"
FORMS = [
    json.dumps({"args": json.dumps({"password": WORD})}),
    json.dumps(json.dumps({"args": json.dumps({"authorization": f"Token {WORD}"})})),
    repr(json.dumps({"password": WORD}).encode()),
    str({"cookie": f"sid={WORD}"}),
    json.dumps({"set-cookie": f"sid={WORD}; Path=/"}),
    str([(b"cookie", b"sid=" + WORD.encode()), (b"x-api-key", WORD.encode())]),
    str([(b"authorization", b"Token " + WORD.encode())]),
    f"https://a.example/?key={WORD}",
    f"https://a.example/?sv=1&sig={WORD}",
    f"https://a.example/?next=%3Fapi_key%3D{WORD}",
    f"https://{WORD}{WORD}@a.example/1",
    f"PGPASSWORD={WORD} DB_PASS={WORD} pwd={WORD}",
    f"accessToken: {WORD}, clientSecret={WORD}, private_key: {WORD}, AccountKey={WORD}",
    rf"password=ab\c{WORD} Authorization: ab\c{WORD}",
    f"password => {WORD}, secret_value={WORD}",
    str({"password": f"it's {WORD}"}) + str({"password": f"'\\\"' {WORD}"}),
    f'password="two words {WORD}',
    str(["psql", "--password", WORD]) + f" --api-key {WORD}",
    f"my_sk-proj-{WORD}{WORD} key%3Dsk-proj-{WORD}{WORD}",
    f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n{WORD}\n-----END PGP PRIVATE KEY BLOCK-----",
    f"The password is {WORD}. Also: the password for the db at home is now {WORD}!",
    f'the passphrase was "correct horse {WORD}", and the API key is {WORD}',
    f"API key: {WORD}; access key = {WORD}",
    f"curl -u ann:{WORD} -sU bob:{WORD} --user=ann:{WORD} --proxy-user 'a@b.c:{WORD}'",
    str(["curl", "-u", f"ann:{WORD}"]),
    f"sshpass -p {WORD} ssh x; mysql -uroot -p{WORD} db; redis-cli -h x -a {WORD} ping",
    f"docker login -u ann -p {WORD}",
    f"https://ann:{WORD}@a.example/x".replace("/", "\\/"),
    f"https%3A%2F%2Fann%3A{WORD}%40a.example%2F",
    f"https://ann:{WORD}/{WORD}@a.example/1 https://:{WORD}@a.example",
    f"https://hooks.slack.com/services/T012345/B012345/{WORD}",
    f"--password 'correct horse {WORD}'",
    f"password='{WORD}(x)' api_key=\"{WORD}[0]\"",
]


@pytest.mark.parametrize("text", FORMS)
def test_a_credential_is_masked_in_whatever_form_it_is_written_down(text: str) -> None:
    masked = mask_text(text)
    assert WORD not in masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "--" + "a-" * 9_999,
        "password" + " " * 9_999,
        "secret='" * 999,
        "cookie:" * 9_999,
        "-eyJaaaaaaa" * 9_999,
        "sk-" * 9_999,
        "password is " * 9_999,
        "password for a b c d " * 9_999,
        "mysql " * 9_999,
        "bearer a" * 9_999,
        "basic a" * 9_999,
        "://a:" * 9_999,
        "%3A%2F%2F" * 9_999,
        "password=a." + "a." * 9_999,
        "-----BEGIN " * 9_999,
        "-----BEGIN PRIVATE KEY-----" + "-----END " * 9_999,
    ],
)
def test_a_hostile_text_is_read_in_time(text: str) -> None:
    """With a pattern that tries again from each sign, each of these would take minutes."""
    assert len(mask_text(text * 5)) > 0


@pytest.mark.parametrize("scheme", ["Bearer ", "Basic ", "Digest ", "Token ", ""])
@pytest.mark.parametrize(
    "line", ["Authorization: {}", "{{'authorization': '{}'}}", 'proxy-authorization="{}"']
)
def test_what_stands_in_a_header_of_authorization_is_masked_whole(scheme: str, line: str) -> None:
    for secret in ("a1b2c3d4e5f6g7h8", "short", "dXNlcjpwYXNz=="):
        masked = mask_text(line.format(scheme + secret))
        assert secret not in masked
        assert mask_text(masked) == masked


def test_a_password_in_an_address_is_masked_with_every_sign_in_it() -> None:
    assert mask_text("redis://:p@ss:w@rd@cache/0 b@c") == "redis://[redacted]@cache/0 b@c"


def test_a_password_in_an_address_is_masked_and_the_host_stays() -> None:
    assert mask_text("postgres://me:pa55word@db:5432/x") == "postgres://[redacted]@db:5432/x"


@pytest.mark.parametrize(
    "text",
    [
        "The task is done: 3 of 4 checks passed at 2026-05-10T00:00:00.000Z.",
        "550e8400-e29b-41d4-a716-446655440000",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "risk-assessment-of-the-second-quarter",
        "see https://example.test/a?b=c#d",
        "tokens: 1200 in, 30 out",
        "a cookie and an authorization are no secrets by themselves",
        "the token was refused",
        "Literal['tokens', 'calls', 'usd'], hasToken, resumeTokens: 12",
        "give it with --token or --password-file, or by the environment",
        "https://a.example/@scope/package?key=a b_sk-1",
        "a basic understanding of JavaScript/HTML5 basics, and bearer authentication",
        "the basic a:b notation, Basic authentication-required, basic concepts",
        "the password is wrong, the token is base64-encoded and is 12-character long",
        "The secret is out. The token is sha256-hashed, valid since 2026-01-01",
        "What is a cookie: a small text that a browser keeps. Cookie: none",
        "Authorization: required; authorization: denied to user ann",
        '{"url":"http://localhost:3000","email":"ann@example.org"}',
        "http://localhost:8080?mail=ann@example.org mailto:ann@example.org",
        "http://a.example:443/path/@scope/package",
        "max_tokens: 128000, total_tokens=1234567, 'completion_tokens': 250000",
        "CONSTRAINT pk_customer_order_items_2024 PRIMARY KEY, sk_stream_wait_memory()",
        "npm_config_registry_of_some_team, sk-learn-contrib-extras-package",
        "password: string; token: Optional[str] = None; secret: SecretStr",
        "password = getpass.getpass(); token = response.json()['x']; key = self.api_key",
        "connect(user=user, password=password, token=settings.token, secret=os.environ['S'])",
        "api_key=process.env.KEY, password: ${DB_PASSWORD}, pwd=$PGPASSWORD, token={token}",
        "WHERE password = :password AND credentials: 'include' -- password: required",
        "credentials: HTTPAuthorizationCredentials = Depends(bearer)",
        "docker run -u 1000:1000 x; rsync -u host:/path; git push -u origin HEAD:main",
        "date -u +%H:%M:%S; sqlmap -u http://a.example",
        "mysql -u root -p mydb; docker run -p 8080:80 x",
        "https://shop.example/?key=category",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk/M9Q",
        "sha512-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08==",
        "nginx:1.25@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "for token in tokens: process(token)\nif token: return token",
    ],
)
def test_ordinary_text_passes_untouched(text: str) -> None:
    assert mask_text(text) == text


def test_masking_twice_changes_nothing_more() -> None:
    once = mask_text(" ".join(LOOKALIKES))
    assert mask_text(once) == once


def test_values_are_masked_at_every_depth_and_under_telling_keys() -> None:
    value = {"a": [{"b": LOOKALIKES[0]}], "password": "short", "n": 3, "client_secret": "x"}
    assert mask_credentials(value) == {
        "a": [{"b": "[redacted]"}],
        "password": "[redacted]",
        "n": 3,
        "client_secret": "[redacted]",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("token", "abc"),
        ("X-Api-Key", "abc"),
        ("apiKeys", ["abc"]),
        ("credentials", {"user": "ann", "pin": "1234"}),
        ("passphrase", "abc"),
        ("db_pass", "abc"),
        ("pwd", "abc"),
        ("tokenValue", "abc"),
        ("password2", "abc"),
        ("signing_key", "abc"),
        ("PRIVATE_KEY_PEM", "abc"),
        ("connectionString", "abc"),
        ("cookies", [{"name": "session", "value": "abc"}]),
    ],
)
def test_what_stands_under_a_telling_key_is_masked_whole(key: str, value: object) -> None:
    assert mask_credentials({key: value}) == {key: "[redacted]"}


@pytest.mark.parametrize(
    "record",
    [
        {"tokensIn": 5, "tokens": 7, "hasToken": True, "secret": "", "password": None},
        {"tokenizer": "words", "secretary": "Ann", "cookieCount": 3},
    ],
)
def test_what_only_sounds_like_a_credential_passes(record: dict[str, object]) -> None:
    assert mask_credentials(record) == record


KEY = "sk-proj-0123456789abcdefghij"
ASKED = {"to": "Faro", "key": KEY, "rows": [{"password": "hunter2"}, f"use {KEY}"]}


def test_who_looks_sees_neither_marked_secrets_nor_what_looks_like_a_credential() -> None:
    assert shown({"a": {"$secret": "x"}, "b": [KEY], "c": 3}) == {
        "a": "[redacted]",
        "b": ["[redacted]"],
        "c": 3,
    }


def test_what_is_given_back_as_it_was_shown_is_what_was_asked() -> None:
    seen = shown(ASKED)
    assert KEY not in str(seen)
    assert as_asked(seen, ASKED) == ASKED
    assert isinstance(seen, dict)
    assert as_asked({**seen, "to": "Lagos"}, ASKED) == {**ASKED, "to": "Lagos"}
    rows = [{"password": "[redacted]"}, "use none", 3]
    assert as_asked({"rows": rows[:2]}, ASKED) == {"rows": [{"password": "hunter2"}, "use none"]}
    assert as_asked({"rows": rows, "more": 1}, ASKED) == {"rows": rows, "more": 1}


def test_changed_arguments_that_come_back_keep_what_was_masked_beside_them() -> None:
    asked = {
        "to": "Faro",
        "password": "hunter2",
        "headers": [["Authorization", "Token abc"], ["Accept", "text"]],
        "env": [{"name": "DB_PASS", "value": "abc"}],
        "credentials": {"pin": "1234"},
        "run": ["psql", "--password", "hunter2"],
    }
    seen = shown(asked)
    assert isinstance(seen, dict)
    assert as_asked({**seen, "to": "Lagos"}, asked) == {**asked, "to": "Lagos"}
    assert as_asked({**seen, "run": ["psql", "--password", "other"]}, asked) == {
        **asked,
        "run": ["psql", "--password", "other"],
    }


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        (["psql", "--password", "abc", "db"], ["psql", "--password", "[redacted]", "db"]),
        (["curl", "-u", "ann:abc"], ["curl", "-u", "[redacted]"]),
        (
            ["x", "--no-password", "db", "--token", "-v"],
            ["x", "--no-password", "db", "--token", "-v"],
        ),
        (["docker", "-u", "1000:1000"], ["docker", "-u", "1000:1000"]),
        (
            [["x-api-key", "abc"], ["accept", "text"]],
            [["x-api-key", "[redacted]"], ["accept", "text"]],
        ),
        (["password", "username"], ["password", "username"]),
        ([{"name": "API_KEY", "value": "abc"}], [{"name": "API_KEY", "value": "[redacted]"}]),
        ([{"key": "city", "value": "Faro"}], [{"key": "city", "value": "Faro"}]),
        ({"auth": ["ann", "abc"]}, {"auth": "[redacted]"}),
        ({"auth": "ann:abc", "proxy_auth": "none"}, {"auth": "[redacted]", "proxy_auth": "none"}),
        ({"auth": {"kind": "none"}}, {"auth": {"kind": "none"}}),
    ],
)
def test_what_a_list_or_a_record_names_a_credential_is_masked(value: Any, masked: Any) -> None:
    assert mask_credentials(value) == masked
    assert mask_credentials(masked) == masked


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_a_user_and_a_password_in_base64_are_masked_and_words_behind_basic_are_not(
    scheme: str,
) -> None:
    for login in ("a:b", f"ann:{WORD}", f"ann@example.org:{WORD}?>", "ann:pässwort"):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            said = encode(login.encode()).decode()
            for form in (said, said.rstrip("=")):
                assert mask_text(f"got {scheme} {form}, and") == f"got {scheme} [redacted], and"
    assert mask_text(f"{scheme} {KEY}") == f"{scheme} [redacted]"


def test_an_image_a_program_and_a_page_of_prose_pass_untouched() -> None:
    image = base64.b64encode(random.Random(1).randbytes(300_000)).decode()
    assert mask_text(f"data:image/png;base64,{image}").count("[redacted]") == 0
    assert (
        mask_text(Path(__file__).parents[2].joinpath("README.md").read_text()).count(REDACTED) == 0
    )


SAMPLES = [*LOOKALIKES, *FORMS]


@pytest.mark.parametrize("seed", range(30))
def test_a_hint_is_in_whatever_its_pattern_finds(seed: int) -> None:
    """Shapes whose hints are not there are not looked for: that may leave out nothing."""
    chance = random.Random(seed)
    pieces = chance.choices(SAMPLES, k=4)
    texts = [
        " ".join(pieces),
        "\n".join(pieces).upper(),
        "".join(pieces).lower(),
        pieces[0].title(),
    ]
    for text in texts:
        folded = text.casefold()
        for shape in SHAPES:
            if re.search(shape.pattern, text):
                assert any(hint in folded for hint in shape.hints.split()), (shape.kind, text)
