"""Questions whose answers are known, from a prompt's data, as GenEval 2 brings them. Pure functions."""

from __future__ import annotations

from typing import Any

from t2ialign.spec.prompts import data_of

KEY = "vqa_list"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
YES_NO = frozenset({"yes", "no"})
COUNTS = frozenset({*NUMBERS, *map(str, range(len(NUMBERS)))})


def questions(prompt: str) -> list[tuple[str, str]]:
    """The questions of a prompt with their right answers, in lower case: yes, no, or a number up to twelve.

    Raises:
        ValueError: its data has none, or other answers; says which.
    """
    found: Any = data_of(prompt).get(KEY)
    if not isinstance(found, list) or not found:
        raise ValueError(f"'{KEY}' of its data is {found!r}; must be a list of [question, answer]")
    pairs = []
    for number, pair in enumerate(found):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise ValueError(f"'{KEY}' {number} of its data is {pair!r}; must be [question, answer]")
        answer = pair[1].strip().lower()
        if answer not in YES_NO | COUNTS:
            raise ValueError(
                f"'{KEY}' {number} of its data has the answer {pair[1]!r}; must be yes, no, or a number to 12"
            )
        pairs.append((pair[0], answer))
    return pairs


def spellings(answer: str) -> frozenset[str]:
    """Words in lower case that are an answer: "two" is also "2"."""
    if answer not in COUNTS:
        return frozenset({answer})
    number = NUMBERS.index(answer) if answer in NUMBERS else int(answer)
    return frozenset({NUMBERS[number], str(number)})


def kin(answer: str) -> frozenset[str]:
    """All words that answer the same kind of question."""
    return COUNTS if answer in COUNTS else YES_NO
