"""What credentials look like: one table of patterns, from which the net of `credentials` is made.

Each pattern reads a text once, however it is written: what repeats is bounded or never given back,
and what may stand anywhere begins where the text before it ends. A text of a megabyte that is made
to be slow takes seconds at most. What a named group has found stays: it only leads to the secret.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Shape(NamedTuple):
    """A kind of credential, and the pattern that finds it.

    One of the `hints`, parted by spaces, is in each text that has one, whatever its case: a pattern
    is hardly ever asked, since to look for its hints costs far less.
    """

    kind: str
    hints: str
    pattern: str


_QUOTE: Final = r"(?:\\*[\"'])?"
"""Also as it stands in a JSON text within a JSON text, where it is behind backslashes."""
_NEXT: Final = rf"{_QUOTE}\s*(?:=>|[=:]|%3[DA]|,(?=\s*b[\"']))\s*b?"
"""What leads from a name to its value: in a header, a mapping, a pair, a call, an address."""
_NAME: Final = (
    r"(?=[acepst_-])(?:password|passwd|passphrase|passcode|[_-]pass"
    r"|(?<![a-z])(?:pwd|secret|credential|token(?!s\W{1,6}(?:[\d_,.]+|[A-Za-z]+)(?![\w-])))"
    r"|(?-i:(?<=[a-z])(?:Secret|Credential|Token|Pwd)(?![a-z]))"
    r"|(?:api|access|private|account|secret|signing|encryption)[ _-]?key)s?"
)
"""The name of a secret; a number of tokens is none."""

_ENDS: Final = r"(?=\.?(?:[\s\"',;:)\]}>|&?\\]|\Z))"
_NO_WORDS: Final = (
    r"(?!\\*[\"']?(?:"
    # A word of a language, and what is said of a secret instead of itself.
    r"(?i:str|bytes|bool|int|float|none|null|true|false"
    r"|string|secretstr|boolean|integer|number|object|undefined|return|continue|lambda"
    r"|required|optional|missing|invalid|expired|unknown|incorrect|correct|protected|denied"
    r"|refused|rejected|revoked|accepted|changed|updated|rotated|created|deleted|removed|verified"
    rf"|encrypted|hashed|include|same-origin){_ENDS}"
    # A variable with the name of a secret, and what stands for a value that is put in later.
    rf"|(?:\w*_)?(?i:password|passphrase|passwd|secret|token|key|credential)s?{_ENDS}"
    r"|[$%]?\{{1,2}[\w .-]{0,60}\}{1,2}(?![^\s\"',;&)])|<[\w .-]{1,60}>"
    r"|\[redacted\]|\*{3}|\.{3}))"
)
"""What stands in the place of a value and is none, in quotes or without."""
_NO_CODE: Final = (
    # A call, an element, a type; a member; what the command line or a database puts in.
    r"(?![A-Za-z_$][\w$]*+(?:\.[A-Za-z_$][\w$]*+)*+[(\[<]"
    r"|(?:[A-Za-z_]++\.)++[A-Za-z_]++(?![\w.=+/~$!@#%&*-])"
    rf"|[A-Z]\w*(?:Password|Secret|Token|Key|Credential)s?{_ENDS}"
    r"|\$?[\[{(]|[A-Z]++(?:_[A-Z]++)++(?![\w-])|\$[A-Z_]++(?!\w)|:[a-z_]++(?!\w))"
)
"""What stands without quotes in its place, and is no text but code."""
_TEXT: Final = (
    r"(?:\"(?=(?:\\.|[^\"\\\r\n]){6})[^\"\\\r\n]*+(?:\\.[^\"\\\r\n]*+)*+(?:\"|\Z)"
    r"|'(?=(?:\\.|[^'\\\r\n]){6})[^'\\\r\n]*+(?:\\.[^'\\\r\n]*+)*+(?:'|\Z)"
    r"|\\+\"[^\"\r\n]{6,}+\"|\\+'[^'\r\n]{6,}+')"
)
_VALUE: Final = rf"{_NO_WORDS}(?:{_TEXT}|{_NO_CODE}{_QUOTE}[^\s\"',;&}}]{{6,}})"

_TOKEN_SIGN: Final = r"[A-Za-z0-9_-]"
_NO_WORD: Final = r"(?=[a-z_-]{0,64}[A-Z0-9])"
"""Names of columns and packages begin like keys, but have neither digits nor capitals."""
_SAID: Final = (
    r"(?i:(?:[ \t]+(?:for|of|to|at|on|in)(?:[ \t]+[\w.@:/-]{1,40}){1,4}?)?"
    r"[ \t]+(?:is|was|are|will be|should be|(?:set|changed|reset) to)(?: now)?:?[ \t]+)"
)
_PLAIN_VALUE: Final = (
    r"(?![\"']?(?i:base|sha|utf|md|oauth|aes|rs|hs|es|v|\d+)[_-]?\d*[ -])"
    r"(?=[^\s\"']{0,64}\d)[^\s\"',;]{5,}[^\s\"',;.!?)]"
)
"""A value within a sentence: it has a digit, and is no name of a method."""

SHAPES: Final[tuple[Shape, ...]] = (
    Shape(
        "private key",
        "-----begin",
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*-----|\Z)",
    ),
    Shape(
        "header of a request",
        "authorization",
        rf"(?i:\bauthorization{_NEXT}{_QUOTE}"
        r"(?!(?:required|failed|denied|error|missing|server|code|none)(?![\w-]))"
        rf"(?!str{_ENDS}|(?:[a-z0-9-]{{3,20}}\s+)?[$%]?{{){_NO_CODE}"
        r"(?:[a-z0-9-]{3,20}\s+)?)[^\s\"',;&}\]]+",
    ),
    Shape(
        "cookie", "cookie", rf"(?i:\bcookie{_NEXT}{_QUOTE}(?=[^\s\"'=;]{{1,64}}=))[^\r\n\"']{{6,}}"
    ),
    Shape(
        "bearer token",
        "bearer",
        r"(?i:\bbearer(?:\s|%20))(?=[A-Za-z._~+/=-]{0,64}?(?:\d|[a-z][A-Z]))"
        r"[A-Za-z0-9._~+/=-]{12,}",
    ),
    Shape(
        "user and password in base64",
        "basic",
        r"(?P<basic>(?i:\bbasic(?:\s|%20)))[A-Za-z0-9+/_-]{4,}+={0,2}",
    ),
    Shape(
        "JSON web token",
        "eyj",
        r"(?:(?<![\w-])eyJ[A-Za-z0-9_-]{6,}+|(?<=-)eyJ[A-Za-z0-9_-]{6,512}+)"
        r"\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){0,3}",
    ),
    Shape(
        "key of a model provider",
        "sk- sk_ pk- pk_ rk- rk_ xai- xai_ pplx- nvapi- nvapi_ whsec- whsec_ r8- r8_ fw_",
        rf"(?:\b(?:sk|pk|rk|xai|gsk|csk|pplx|nvapi|whsec|r8)|(?<=_)sk|(?<=%3[AD])sk)-{_NO_WORD}"
        rf"{_TOKEN_SIGN}{{16,}}|(?:\b|(?<=_))[spr]k_(?:live|test|prod)_{_TOKEN_SIGN}{{10,}}"
        rf"|\b(?:[gc]?sk|[pr]k|xai|whsec|r8|fw|nvapi)_(?=[A-Za-z]{{0,40}}\d)[A-Za-z0-9]{{16,}}"
        rf"{_TOKEN_SIGN}*",
    ),
    Shape("key of Google", "aiza ya29.", r"\bAIza[A-Za-z0-9_-]{30,}|\bya29\.[A-Za-z0-9_-]{20,}"),
    Shape("key of AWS", "akia asia aroa aida", r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"),
    Shape(
        "token of GitHub",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}",
    ),
    Shape("token of GitLab", "glpat-", r"\bglpat-[A-Za-z0-9_-]{16,}"),
    Shape(
        "token of Slack",
        "xox xapp- hooks.slack",
        r"\b(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}"
        r"|(?P<hook>\bhooks\.slack\.com/(?:services|workflows)/)[\w/+-]{20,}",
    ),
    Shape(
        "token of another service",
        "npm_ pypi- hf_ dop_v1_ shpat_ shpca_ shppa_ shpss_ lin_api_ ntn_ sbp_ dapi hvs. hvb."
        " atatt3 sg. age-secret-key :aa",
        r"\b(?:npm_|pypi-|hf_|dop_v1_|shp(?:at|ca|pa|ss)_|lin_api_|ntn_|sbp_|dapi|hv[sb]\.|ATATT3)"
        r"(?=[A-Za-z_-]{0,64}\d)[A-Za-z0-9_=-]{20,}"
        r"|\bSG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}|\bAGE-SECRET-KEY-1[A-Z0-9]{20,}"
        r"|(?<!\d)\d{8,10}:AA[A-Za-z0-9_-]{30,}",
    ),
    Shape(
        "password or token in an address",
        "@ %40",
        r"(?:(?<=://)|(?<=:\\/\\/))(?:[^\s/:@\"'<>\\]*:(?!\d{1,5}[/?#])[^\s/\"'<>\\]+"
        r"|[^\s/:@\"'<>\\]+:(?!\d{1,5}[/?#])[^\s@\"'<>\\?#]{1,200}"
        r"|[A-Za-z0-9_~-]{16,})(?=@)"
        r"|(?i:(?<=%3A%2F%2F)(?:[^\s%&/]|%(?!40|2F)){0,100}%3A(?:[^\s%&]|%(?!40)){1,200}(?=%40))",
    ),
    Shape(
        "signature of an address",
        "key= sig= signature= token=",
        r"[?&](?i:(?:key(?==[^\s&\"'#]{0,64}\d)|sig|(?:x-(?:amz|goog)-)?signature"
        r"|x-amz-security-token)=)(?!\[redacted\])[^\s&\"'#]{6,}",
    ),
    Shape(
        "option of a command",
        "--",
        r"--(?<![\w-]--)(?i:(?:[a-z]+-){0,4}"
        rf"{_NAME}[\"']?,?\s+(?!\[redacted\])(?:{_TEXT}"
        r"|[\"']?(?=[^\s\"']{0,200}\d)[^\s\"']{6,}))",
    ),
    Shape(
        "user and password of a command",
        "- sshpass login mysql mariadb redis-cli",
        r"(?P<login>(?<![\w-])(?:-[A-Za-z]{0,3}[uU]|--(?:proxy-)?user)"
        r"(?:[\"']?,?[ \t]+|=)[\"']?)"
        r"(?!\d+:\d)[\w.@\\-]{1,80}:(?![\\/])[^\s\"']{2,}"
        r"|(?P<command>\b(?:(?:sshpass|(?:docker|podman|registry)[ ]login)\b[^\r\n|;&]{0,100}?"
        r"[ \t]-p[ \t]*|(?:mysql|mariadb)[\w-]{0,20}\b[^\r\n|;&]{0,100}?[ \t]-p"
        r"|redis-cli\b[^\r\n|;&]{0,100}?[ \t]-a[ \t]+)[\"']?)[^\s\"']{3,}",
    ),
    Shape(
        "password in a sentence",
        "pass",
        rf"(?P<said>(?i:\bpass(?:word|phrase|code|wd)){_SAID})"
        rf"(?:\"[^\"\r\n]{{4,200}}\"|'[^'\r\n]{{4,200}}'|`[^`\r\n]{{4,200}}`|{_PLAIN_VALUE})",
    ),
    Shape(
        "other secret in a sentence",
        "secret token credential key",
        r"(?P<told>(?i:\b(?:secret|token|credential|(?:api|access|private|account|secret|signing"
        rf"|encryption)[ _-]?key)){_SAID})"
        rf"(?:\"(?=[^\"\s]{{0,64}}\d)[^\"\s]{{4,}}\"|'(?=[^'\s]{{0,64}}\d)[^'\s]{{4,}}'"
        rf"|`[^`\s]{{4,200}}`|{_PLAIN_VALUE})",
    ),
    Shape(
        "named value",
        "pass pwd secret credential token key",
        rf"(?i:{_NAME}(?:[_-]access)?(?:[_-](?:key|value|\d))?)(?i:{_NEXT}){_VALUE}",
    ),
)
"""What credentials look like."""
