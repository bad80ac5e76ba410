"""The canned conversation of the scripted backend: which answer fits, and what it says."""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from perdure.core.frames import Frame, reasoning, text, tool_call, tool_result
from perdure.core.records import JsonValue

EXCERPT_MAX: Final = 80
"""So many characters of a user's message are quoted."""


class Question(NamedTuple):
    """The last user message, and the user messages before it, oldest first."""

    text: str
    earlier: Sequence[str]

    @property
    def digest(self) -> int:
        """Return a number that only the text decides, in every process alike."""
        return int.from_bytes(hashlib.sha256(self.text.encode("utf-8", "replace")).digest()[:4])


def canned_answer(messages: Sequence[Mapping[str, JsonValue]]) -> Iterator[Frame]:
    """Yield the answer to the last user message: whole parts, not yet cut into tokens."""
    asked = [content_text(each.get("content")) for each in messages if each.get("role") == "user"]
    question = Question(asked[-1] if asked else "", asked[:-1])
    yield reasoning(_thoughts(question))
    yield text(_opening(question))
    yield from _choose(question)(question)


def content_text(content: JsonValue) -> str:
    """Return the text of a message's `content`: a string, a list of parts, or None."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part.get("type") == "text")


def _choose(question: Question) -> Callable[[Question], Iterator[Frame]]:
    for pattern, answer in _BY_KEYWORD:
        if pattern.search(question.text):
            return answer
    return _OTHERWISE[question.digest % len(_OTHERWISE)]


def _excerpt(message: str) -> str:
    line = " ".join(message.split()) or "…"
    return line if len(line) <= EXCERPT_MAX else f"{line[: EXCERPT_MAX - 1]}…"


def _thoughts(question: Question) -> str:
    words = len(question.text.split())
    history = (
        f"There are {len(question.earlier)} earlier turns, so I keep to the thread."
        if len(question.earlier) > 1
        else "There is one earlier turn, so I keep to the thread."
        if question.earlier
        else "Nothing was said before, so I start from scratch."
    )
    return (
        f"The message has {words} {'word' if words == 1 else 'words'}. {history} "
        "I follow a script and look for a keyword that tells me what is wanted."
    )


def _opening(question: Question) -> str:
    quoted = f"You wrote: “{_excerpt(question.text)}”."
    if not question.earlier:
        return f"{quoted} This is the first turn of our conversation.\n\n"
    return (
        f"{quoted} This is turn {len(question.earlier) + 1} of our conversation; "
        f"just before, you wrote: “{_excerpt(question.earlier[-1])}”.\n\n"
    )


def _weather(question: Question) -> Iterator[Frame]:
    named = _CITY.search(question.text)
    city = named[1].title() if named else "Lisbon"
    seed = Question(city, ()).digest
    low, sky = seed % 14 + 2, _SKIES[seed // 16 % len(_SKIES)]
    report = {"city": city, "sky": sky, "low_c": low, "high_c": low + 7, "wind_kmh": seed % 31}
    yield reasoning(f" I need the weather in {city}: I ask the tool instead of guessing.")
    yield tool_call("call_weather", "get_weather", {"city": city}, effect="pure")
    yield tool_result("call_weather", report)
    yield text(
        f"### The weather in {city}\n\n"
        "| | today |\n|---|---|\n"
        f"| sky | {sky} |\n"
        f"| temperature | {low} °C to {low + 7} °C |\n"
        f"| wind | {seed % 31} km/h |\n\n"
        f"{'Take an umbrella. ☔' if 'rain' in sky else 'You can leave the umbrella at home. 🌤️'} "
        "*(The tool behind this is made up, but always says the same of the same city.)*\n"
    )


def _sum(question: Question) -> Iterator[Frame]:
    match = _SUM.search(question.text)
    left, sign, right = match.groups() if match else ("6", "*", "7")
    result = _OPERATORS[sign](int(left), int(right))
    expression = f"{left} {sign} {right}"
    yield reasoning(" I am bad at sums, so I use the calculator.")
    yield tool_call("call_calculate", "calculate", {"expression": expression}, effect="pure")
    yield tool_result("call_calculate", {"value": result})
    yield text(f"The calculator says: `{expression} = {result}`, that is **{result}**. 🧮\n")


def _code(question: Question) -> Iterator[Frame]:
    yield text(
        "## Do it once, even when you are interrupted\n\n"
        "The idea is to write down a result *before* anybody may rely on it:\n\n"
        "```python\n"
        "async def once(record, name, work):\n"
        "    if name in record:          # done before the crash\n"
        "        return record[name]\n"
        "    result = await work()\n"
        "    await record.write(name, result)\n"
        "    return result\n"
        "```\n\n"
        "Three things to keep in mind:\n\n"
        "1. The name must be **the same** after a restart.\n"
        "2. Between `work()` and `write()` there is a gap: `work` should bear being repeated.\n"
        "3. Two processes need a *fence*, so that only one of them writes.\n"
    )


def _table(question: Question) -> Iterator[Frame]:
    yield text(
        "## What survives what\n\n"
        "| what happens | request handler | durable turn |\n"
        "|:--|:-:|:-:|\n"
        "| the tab is closed | lost | goes on |\n"
        "| the network drops | lost | goes on |\n"
        "| the process is killed | lost | taken over |\n"
        "| the user presses stop | maybe | stopped, text kept |\n\n"
        "> The last row matters as much as the others: *stop* is a wish, a lost connection is "
        "not.\n\nIn short: **only you** end a turn.\n"
    )


def _languages(question: Question) -> Iterator[Frame]:
    yield text(
        "Hello! 👋 Here is the same greeting around the world:\n\n"
        "- **Español:** ¡Hola! ¿Qué tal el día?\n"
        "- **Français :** Bonjour, ça va bien ?\n"
        "- **Deutsch:** Grüß dich, schön, dass du da bist!\n"
        "- **Ελληνικά:** Γεια σου, τι κάνεις;\n"
        "- **Русский:** Привет, как дела?\n"
        "- **العربية:** مرحبا، كيف حالك؟\n"
        "- **हिन्दी:** नमस्ते, आप कैसे हैं?\n"
        "- **日本語:** こんにちは、お元気ですか。\n"
        "- **中文:** 你好，今天过得怎么样？\n"
        "- **한국어:** 안녕하세요, 잘 지내세요?\n\n"
        "And for everybody: 🌍🎉👩‍🚀👨‍👩‍👧‍👦🏳️‍🌈\n"
    )


def _plan(question: Question) -> Iterator[Frame]:
    yield text(
        "### A small plan\n\n"
        "1. **Say** in one sentence what should be true at the end.\n"
        "2. **Split** it into steps that can each be checked:\n"
        "   - what goes in,\n"
        "   - what comes out,\n"
        "   - what may go wrong.\n"
        "3. **Do** the riskiest step first.\n"
        "4. **Write down** each result, so that nothing is done twice.\n\n"
        "I am a scripted model and need no network. Ask me about the *weather in Oslo*, "
        "`12 * 34`, some *code*, a *table*, other *languages*, or for a *long story*.\n"
    )


def _story(question: Question) -> Iterator[Frame]:
    yield reasoning(" A long answer is wanted: a tale in five chapters.")
    yield text(f"# The keeper of the light\n\n{_STORY}")


_CITY: Final = re.compile(
    r"\b(?:in|for|at)\s+((?!the\b|a\b|an\b|my\b|me\b)[^\W\d_]{2,20}(?:\s+(?=[A-Z])[^\W\d_]{2,20})?)"
)
_SKIES: Final = ("clear", "some clouds", "light rain", "heavy rain", "fog", "snow showers")
_SUM: Final = re.compile(r"(?<![\d.])(\d{1,7})\s*([-+*x×])\s*(\d{1,7})(?![\d.])")
_OPERATORS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "x": operator.mul,
    "×": operator.mul,
}


def _words(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})", re.IGNORECASE)


_BY_KEYWORD: Final = (
    (_SUM, _sum),
    (_words("weather|forecast|temperature|rain"), _weather),
    (_words(r"long\b|story|stories|essay|tale\b|novel"), _story),
    (_words("code|python|function|program|script"), _code),
    (_words("table|compar|versus|vs\\b|differ"), _table),
    (_words("hello|hi\\b|hey\\b|hola|bonjour|hallo|languages?\\b|translat|emoji"), _languages),
    (_words("calculat|plus\\b|sum\\b"), _sum),
    (_words("plan|help|how\\b|steps?\\b|list"), _plan),
)
_OTHERWISE: Final = (_plan, _table, _code, _languages)

_STORY: Final = """\
## I. The rule

On a rock in the northern sea stood a lighthouse, and in it lived Ines, who had one rule: whatever \
happens is written down before it counts. When she lit the lamp, she wrote *lamp lit* into the log \
and only then went to supper. When a ship passed, she wrote its name and only then waved. The \
fishermen found this odd. “Why write before you wave?” they asked. “Because a wave is gone when I \
look away,” said Ines, “and the log is not.”

## II. The storm

In the third winter a storm came that nobody had a word for. It took the boat, then the railing, \
then the door. At midnight it took the stairs, and Ines with them. She woke at dawn on the shingle \
below, with a sore head and no memory of the night. Above her the lamp was dark. She could not \
tell whether she had wound the clockwork, whether she had warned the harbour, whether the ship \
she half remembered had been a dream. So she did what she always did: she climbed up and read.

## III. The log

The log lay in its iron box, wet at the edges but whole. *Clockwork wound*, it said, in her own \
hand. *Harbour warned*. And below it, a line that stopped in the middle: *Rocket fired for the \
brig Mar—*. She thought about that line for a long time. The clockwork she did not wind again: it \
was written, so it was done. The harbour she did not warn again, for a second warning would have \
sent the lifeboat out twice. But the rocket? A line that is begun and not ended means only this: \
perhaps. She looked at the rack. One rocket was missing. Then she took up the pen, finished the \
word, and wrote behind it: *fired, counted the rack to be sure*.

## IV. The other keeper

When the storm was over, a boat came from the mainland with a young man and a sealed letter. The \
harbour had seen the light go out and had sent a new keeper, named Tomas, with a new key. Ines \
read the letter twice. For one hour there were two keepers on the rock, both honest, both sure of \
themselves, and both reaching for the same pen. Then Tomas showed her the number on his key: it \
was higher by one than the number on hers. “Then the log is yours,” she said, and laid down the \
pen in the middle of a word, without any bitterness, for that was the second rule, older than the \
first: only the newest key may write. Tomas read the log from the first page to the last, and by \
evening he knew all that she knew. He did not have to ask her a single question.

## V. The light

They stayed both, in the end, since a lighthouse is a lonely thing. They took the watch in turns, \
and whoever had the watch had the key. Ships came and went, and some came back after years and \
asked what they had missed. Then the keeper would open the log at the page where that ship had \
last been seen, and read aloud from there, leaving nothing out and saying nothing twice. And if \
somebody called up from the water, “That is enough, thank you”, the keeper stopped, noted the \
place, and closed the book. ⚓

*The end.*
"""
