"""The caption grammar: six families named as in GenEval, parsed, enumerated and sampled.

A caption says one or two things about a picture, optionally how they lie to each other, and
optionally the background:

    a circle                                   single_object
    a circle and a square                      two_object
    three red circles                          counting
    a red circle                               colors
    a red circle left of a blue square         position (also without colours)
    a red circle and a blue square             color_attr

each possibly followed by ``on a black background`` or ``on a white background``. The two things of
a caption always differ in shape, and in colour where they have one, so a caption never asks for
two objects that could be mistaken for each other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, TypeVar

SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
BACKGROUNDS = ("black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
FAMILIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

FAMILY_WEIGHTS = (0.06, 0.10, 0.22, 0.14, 0.24, 0.24)
"""How often `sample` draws each family: the hard ones get most of the training data."""

COLORED_COUNTING = 0.6
COLORED_POSITION = 0.6
WITH_BACKGROUND = 0.25

Word = TypeVar("Word", str, int)


@dataclass(frozen=True, slots=True)
class Thing:
    """``count`` objects of one shape, of one colour or (``color=None``) of any colour."""

    shape: str
    color: str | None = None
    count: int = 1

    def __str__(self) -> str:
        article = COUNT_WORDS.get(self.count, "a")
        noun = self.shape + ("s" if self.count > 1 else "")
        return " ".join(word for word in (article, self.color, noun) if word)


@dataclass(frozen=True, slots=True)
class Caption:
    """What a picture has to show: one or two things, their relation, the background.

    ``relation`` places the first thing relative to the second.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def family(self) -> str:
        """The GenEval name of the kind of skill the caption tests."""
        first = self.things[0]
        if len(self.things) == 1:
            return "counting" if first.count > 1 else "colors" if first.color else "single_object"
        return "position" if self.relation else "color_attr" if first.color else "two_object"

    @property
    def objects(self) -> tuple[Thing, ...]:
        """The things one by one: ``three circles`` gives three circles."""
        return tuple(replace(thing, count=1) for thing in self.things for _ in range(thing.count))

    def __str__(self) -> str:
        text = f" {self.relation or 'and'} ".join(map(str, self.things))
        return f"{text} on a {self.background} background" if self.background else text


def foreign_word(things: Iterable[Mapping[str, Any]]) -> str:
    """What is wrong with the words of GenEval's clauses: the first class or colour that this world does not have, or
    nothing."""
    for thing in things:
        for word, known in ((thing["class"], SHAPES), (thing.get("color"), (*COLORS, None))):
            if word not in known:
                return f"'{word}' is none of {', '.join(filter(None, known))}"
    return ""


def to_text(caption: Caption) -> str:
    """Write a caption as the prompt that `parse` reads back."""
    return str(caption)


_COUNTS = {"a": 1} | {word: count for count, word in COUNT_WORDS.items()}
_NOUN = "|".join(SHAPES)
_THING = rf"({'|'.join(_COUNTS)}) (?:({'|'.join(COLORS)}) )?({_NOUN})(s?)"
_CAPTION = re.compile(
    rf"{_THING}(?: ({'|'.join(RELATIONS)}|and) {_THING})?"
    rf"(?: on a ({'|'.join(BACKGROUNDS)}) background)?"
)


def parse(text: str) -> Caption:
    """Read a prompt of the grammar; case and repeated spaces do not matter.

    Raises:
        ValueError: the text is not a caption of this world.
    """
    match = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if not match:
        raise ValueError(f"not a caption of the shapes world: {text!r}")
    *first, joint, word, color, shape, plural, background = match.groups()
    words = [first] if joint is None else [first, (word, color, shape, plural)]
    things = tuple(Thing(shape, color, _COUNTS[word]) for word, color, shape, _ in words)
    caption = Caption(things, None if joint in (None, "and") else joint, background)
    plurals = [plural == "s" for *_, plural in words]
    if plurals != [thing.count > 1 for thing in things] or not _is_valid(caption):
        raise ValueError(f"not a caption of the shapes world: {text!r}")
    return caption


def _is_valid(caption: Caption) -> bool:
    if len(caption.things) == 1:
        return True
    first, second = caption.things
    colors_fit = (first.color is None) == (second.color is None) and (
        first.color is None or first.color != second.color
    )
    return first.count == second.count == 1 and first.shape != second.shape and colors_fit


def enumerate_captions(family: str) -> Iterator[Caption]:
    """Yield every caption of a family once, in a fixed order, those without background first."""
    pairs = list(permutations(SHAPES, 2))
    colored_pairs = [(Thing(a, c), Thing(b, d)) for (a, b), (c, d) in product(pairs, permutations(COLORS, 2))]
    plain_pairs = [(Thing(a), Thing(b)) for a, b in pairs]
    captions = {
        "single_object": [Caption((Thing(shape),)) for shape in SHAPES],
        "two_object": [Caption(pair) for pair in plain_pairs],
        "counting": [
            Caption((Thing(shape, color, count),))
            for count, color, shape in product(COUNT_WORDS, (None, *COLORS), SHAPES)
        ],
        "colors": [Caption((Thing(shape, color),)) for color, shape in product(COLORS, SHAPES)],
        "position": [Caption(pair, relation) for relation, pair in product(RELATIONS, plain_pairs + colored_pairs)],
        "color_attr": [Caption(pair) for pair in colored_pairs],
    }[family]
    for background in (None, *BACKGROUNDS):
        for caption in captions:
            yield replace(caption, background=background)


def sample(rng: random.Random, family: str | None = None) -> Caption:
    """Draw a caption: a family by `FAMILY_WEIGHTS` (unless given), then its words."""
    family = family or rng.choices(FAMILIES, FAMILY_WEIGHTS)[0]
    background = rng.choice(BACKGROUNDS) if rng.random() < WITH_BACKGROUND else None
    shapes = rng.sample(SHAPES, 2)
    colors: list[str] | list[None] = rng.sample(COLORS, 2)
    counting, position = family == "counting", family == "position"
    if (
        family in ("single_object", "two_object")
        or (counting and rng.random() >= COLORED_COUNTING)
        or (position and rng.random() >= COLORED_POSITION)
    ):
        colors = [None, None]
    count = rng.choice(list(COUNT_WORDS)) if counting else 1
    pair = family in ("two_object", "position", "color_attr")
    things = tuple(Thing(shapes[i], colors[i], count) for i in range(2 if pair else 1))
    return Caption(things, rng.choice(RELATIONS) if position else None, background)


def hard_negative(caption: Caption, rng: random.Random) -> Caption:
    """Change one fact of a caption, so that a picture of the one never shows the other.

    The change is a count, the relation, an exchange of the two colours, a shape, a colour or the
    background.
    """
    things = list(caption.things)
    first = things[0]
    # The facts that are hard to tell apart come up more often.
    kinds = ["shape"]
    kinds += ["color"] * (first.color is not None)
    kinds += ["swap"] * 2 * (len(things) == 2 and first.color is not None)
    kinds += ["count"] * 2 * (first.count > 1)
    kinds += ["relation"] * 3 * (caption.relation is not None)
    kinds += ["background"] * (caption.background is not None)

    def other(words: Iterable[Word], *used: Word | None) -> Word:
        return rng.choice([word for word in words if word not in used])

    match rng.choice(kinds):
        case "shape":
            which = rng.randrange(len(things))
            shape = other(SHAPES, *(thing.shape for thing in things))
            things[which] = replace(things[which], shape=shape)
        case "color":
            which = rng.randrange(len(things))
            color = other(COLORS, *(thing.color for thing in things))
            things[which] = replace(things[which], color=color)
        case "swap":
            a, b = things
            things = [replace(a, color=b.color), replace(b, color=a.color)]
        case "count":
            things = [replace(first, count=other(COUNT_WORDS, first.count))]
        case "relation":
            return replace(caption, relation=other(RELATIONS, caption.relation))
        case "background":
            background = "white" if caption.background == "black" else "black"
            return replace(caption, background=background)
    return replace(caption, things=tuple(things))
