"""What a vision-language model's answer is worth. Pure functions; what cannot be read is never a number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any


class Unreadable(ValueError):
    """An answer that is not what was asked for; the text says what it is."""


@dataclass(frozen=True)
class Reply:
    """One answer of a model.

    Attributes:
        text: what it wrote.
        top: log-probabilities of likely first tokens, where they were asked for.
    """

    text: str
    top: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Opinion:
    """What a reply is worth, and why."""

    value: float
    words: str


def yes(top: Mapping[str, float], relative: bool) -> float:
    """The probability that the answer begins with "yes", over all spellings of it.

    Args:
        top: token -> log-probability of the first tokens that are likely; tokens with equal letters add up.
        relative: of "yes" or "no", and not of any word (VQAScore).

    Raises:
        Unreadable: neither word is likely.
    """
    share, both = probability(top, {"yes"}, {"yes", "no"})
    return share / both if relative else share


def probability(top: Mapping[str, float], right: Set[str], kin: Set[str]) -> tuple[float, float]:
    """The probability that the answer begins with one of some words, whatever their case and what stands around them.

    Args:
        top: see ``yes``.
        kin: all words that would be an answer to the question; ``right`` are some of them.

    Returns:
        That of ``right``, 0 where no such word is among the likely ones, and that of ``kin``.

    Raises:
        Unreadable: no word of ``kin`` is likely.
    """
    shares = {token: math.exp(value) for token, value in top.items() if _word(token) in kin}
    if not shares:
        likely = ", ".join(repr(token) for token in list(top)[:5]) or "nothing"
        words = "neither yes nor no is" if kin == {"yes", "no"} else "no number is"
        raise Unreadable(f"{words} a likely answer, but {likely}")
    return sum(share for token, share in shares.items() if _word(token) in right), sum(shares.values())


def _word(token: str) -> str:
    return token.strip().strip("▁Ġ\"'*.").lower()


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in an answer, whatever stands around it.

    Raises:
        Unreadable: there is none.
    """
    try:
        found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON object but {text[:120]!r}") from error
    assert isinstance(found, dict)  # it begins with a brace
    return found


def number(text: str, low: float, high: float) -> Opinion:
    """The "score" of a JSON answer, mapped from [low, high] to [0, 1].

    Raises:
        Unreadable: no number in that range.
    """
    found = json_object(text)
    return Opinion(_mapped(found.get("score"), low, high), str(found.get("explanation", "")))


def matched(text: str, pattern: str, low: float, high: float) -> Opinion:
    """The mean of the numbers in a pattern's groups, mapped from [low, high] to [0, 1]; the last match counts.

    Raises:
        Unreadable: the pattern is not in the answer, or a number is out of the range.
    """
    found = list(re.finditer(pattern, text))
    if not found:
        raise Unreadable(f"nothing like {pattern!r} in {text[-120:]!r}")
    values = [_mapped(_float(group), low, high) for group in found[-1].groups()]
    return Opinion(sum(values) / len(values), text)


def winner(text: str) -> tuple[int, str]:
    """Which of two images a JSON answer prefers, 1 or 2, or 0 for neither, and why.

    Raises:
        Unreadable: it says neither.
    """
    found = json_object(text)
    choices = {"1": 1, "2": 2, "tie": 0}
    choice = choices.get(str(found.get("winner")).lower())
    if choice is None:
        raise Unreadable(f"winner is {found.get('winner')!r}; must be '1', '2' or 'tie'")
    return choice, str(found.get("explanation", ""))


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _mapped(value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Unreadable(f"score is {value!r}; must be a number from {low:g} to {high:g}")
    return (value - low) / (high - low)


def schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema of an object with just these keys, all of them needed."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def number_schema(low: float, high: float) -> dict[str, Any]:
    return schema({"explanation": {"type": "string"}, "score": {"type": "number", "minimum": low, "maximum": high}})


def winner_schema() -> dict[str, Any]:
    return schema({"explanation": {"type": "string"}, "winner": {"type": "string", "enum": ["1", "2", "tie"]}})


def together(opinions: Sequence[Opinion]) -> Opinion:
    """Several answers as one: the mean, and what the first had to say."""
    return Opinion(sum(one.value for one in opinions) / len(opinions), opinions[0].words)


def to_all_questions(opinions: Sequence[Opinion], geometric: bool) -> Opinion:
    """The answers to several questions as one, and which of them is the least likely to be right."""
    values = [one.value for one in opinions]
    mean = math.prod(values) ** (1 / len(values)) if geometric else sum(values) / len(values)
    return Opinion(mean, min(opinions, key=lambda one: one.value).words)
