"""Which text an image should show, and how close what was read comes to it. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from t2ialign.spec.prompts import data_of

#: Straight quotes as Flow-GRPO reads them, where the last one may be missing; curly ones in pairs.
QUOTED = re.compile(r'"([^"]*)(?:"|$)|“([^”]*)”')


def targets(prompt: str, key: str | None = None, every: bool = False) -> list[str]:
    """The texts that a prompt wants to be shown.

    Args:
        key: of the prompt's data, whose value is a text or a list of texts; None: what stands in quotation marks.
        every: all parts in quotation marks, else the first.

    Raises:
        ValueError: there is none, or one that is empty; says where.
    """
    if key is not None:
        found: Any = data_of(prompt).get(key)
        texts = [found] if isinstance(found, str) else found
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"'{key}' of its data is {found!r}; must be a text or a list of texts")
    else:
        texts = [straight or curly for straight, curly in QUOTED.findall(prompt)]
        texts = texts if every else texts[:1]
        if not texts:
            raise ValueError('has no text in quotation marks ("...")')
    if empty := [text for text in texts if not normalised(text).strip()]:
        raise ValueError(f"wants the text {empty[0]!r}, which has no letter")
    return texts


def normalised(text: str) -> str:
    """Without spaces and in lower case, as Flow-GRPO compares texts."""
    return text.replace(" ", "").lower()


def joined(lines: Sequence[tuple[str, float]]) -> str:
    """The lines that were read with any confidence, in their order."""
    return "".join(text for text, confidence in lines if confidence > 0)


def similarity(read: str, target: str, contained: bool = True) -> float:
    """1 - d / n, with the edit distance d, at most n, to a target of n letters: 1 is equal, 0 nothing alike.

    Args:
        contained: a target inside a longer text has d = 0 (Flow-GRPO).
    """
    from rapidfuzz.distance import Levenshtein

    read, target = normalised(read), normalised(target)
    if contained and target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)
