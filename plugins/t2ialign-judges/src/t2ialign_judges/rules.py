"""The rules of GenEval (Ghosh et al. 2023, arXiv 2310.11513): from detections to a verdict with its reasons.

Pure functions of plain data. A *class* is a detector's word for a kind of object. Boxes are (x0, y0, x1, y1) in pixels,
y downwards.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple

Box = tuple[float, float, float, float]
Relation = Literal["left of", "right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
#: A relation holds where the shrunk offset has this share of the whole one along its axis.
ALONG = 0.5
#: Offsets below this, in pixels, are none.
NOWHERE = 1e-3


class Detection(NamedTuple):
    """One object as a detector reports it."""

    box: Box
    score: float


#: Class -> its detections, in the detector's order.
Detections = Mapping[str, Sequence[Detection]]
#: The colour of one detection, by its class and its place among the detections of that class.
ColorOf = Callable[[str, int], str]


@dataclass(frozen=True)
class Limits:
    """The benchmark's constants.

    Attributes:
        threshold: detections count above this confidence.
        counting_threshold: the same for the tag "counting".
        max_objects: of one class, the most confident ones.
        max_overlap: an object is dropped where a more confident one of its class has this IoU or more; 1 drops none.
        position_threshold: share of both objects' sizes by which an offset is shrunk before it is a relation.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True)
class Clause:
    """``count`` objects of a class, perhaps of a colour, perhaps somewhere relative to those of an earlier clause."""

    name: str
    count: int
    color: str | None = None
    relation: Relation | None = None
    target: int = 0


@dataclass(frozen=True)
class Asked:
    """What a prompt's metadata asks for."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    tag: str = ""

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(clause.name for clause in (*self.include, *self.exclude)))


class Reason(NamedTuple):
    """Why a clause is wrong: its kind ("count", "color", "position", "no_target", "exclude") and a sentence."""

    kind: str
    words: str


@dataclass(frozen=True)
class Verdict:
    """A score, higher is better, and what is wrong."""

    score: float
    reasons: tuple[Reason, ...] = ()

    @property
    def words(self) -> str:
        return "; ".join(reason.words for reason in self.reasons) or "all that was asked for"


@dataclass(frozen=True)
class Scene:
    """The objects that count, and the colours of them.

    Attributes:
        detections: everything that was detected.
        kept: class -> places of the detections that count, most confident first; see ``keep``.
        color_of: asked only where a clause names a colour.
    """

    detections: Detections
    kept: Mapping[str, Sequence[int]]
    color_of: ColorOf
    limits: Limits = field(default_factory=Limits)

    def found(self, clause: Clause) -> Sequence[int]:
        return self.kept.get(clause.name, ())

    def colored(self, clause: Clause, found: Sequence[int]) -> int:
        return sum(self.color_of(clause.name, index) == clause.color for index in found)

    def related(self, clause: Clause, found: Sequence[int], target: Clause, there: Sequence[int]) -> list[bool]:
        """Whether the clause's relation holds, for every pair of an object and a target."""
        pairs = product(found, there)
        return [
            clause.relation
            in relations(
                self.detections[clause.name][a].box, self.detections[target.name][b].box, self.limits.position_threshold
            )
            for a, b in pairs
        ]


def read(data: Mapping[str, Any]) -> Asked:
    """What GenEval's metadata asks for.

    Args:
        data: ``include``, and perhaps ``exclude`` and ``tag``.

    Raises:
        ValueError: it has another form; says which clause, and what is wrong.
    """
    tag = data.get("tag", "")
    include = tuple(_clause(f"include[{i}]", i, entry) for i, entry in enumerate(_list("include", data)))
    exclude = tuple(_clause(f"exclude[{i}]", i, entry) for i, entry in enumerate(_list("exclude", data)))
    return Asked(include, exclude, tag if isinstance(tag, str) else "")


def _list(key: str, data: Mapping[str, Any]) -> list[Any]:
    entries = data.get(key, [])
    if not isinstance(entries, list):
        raise ValueError(f"{key} is {entries!r}; must be a list of objects with 'class' and 'count'")
    return entries


def _clause(where: str, index: int, entry: Any) -> Clause:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
        raise ValueError(f"{where} is {entry!r}; must be an object with 'class' and 'count'")
    count = entry.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{where}.count is {count!r}; must be an integer of at least 1")
    color = entry.get("color")
    if color is not None and not isinstance(color, str):
        raise ValueError(f"{where}.color is {color!r}; must be a word")
    position = entry.get("position")
    if position is None:
        return Clause(entry["class"], count, color)
    if not isinstance(position, list | tuple) or len(position) != 2 or position[0] not in RELATIONS:
        raise ValueError(f"{where}.position is {position!r}; must be [relation, clause], of {', '.join(RELATIONS)}")
    relation, target = position
    if not isinstance(target, int) or isinstance(target, bool) or not -index <= target < index:
        raise ValueError(f"{where}.position names clause {target!r}; must be an earlier one")
    return Clause(entry["class"], count, color, relation, target % index)  # -1 is the clause before


def scene(asked: Asked, detections: Detections, color_of: ColorOf, limits: Limits) -> Scene:
    """The objects that count for what was asked."""
    threshold = limits.counting_threshold if asked.tag == "counting" else limits.threshold
    kept = {name: keep(found, threshold, limits) for name, found in detections.items()}
    return Scene(detections, kept, color_of, limits)


def keep(found: Sequence[Detection], threshold: float, limits: Limits) -> list[int]:
    """Places of the detections of one class that count, most confident first; of equal ones, the later listed first."""
    order = sorted(range(len(found)), key=lambda i: (found[i].score, i), reverse=True)
    # Detectors give float32: a score that is the threshold's float32 is not above it.
    above = [i for i in order if _float32(found[i].score) > _float32(threshold)][: limits.max_objects]
    if limits.max_overlap >= 1:
        return above
    kept: list[int] = []
    for i in above:
        if all(iou(found[i].box, found[j].box) < limits.max_overlap for j in kept):
            kept.append(i)
    return kept


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def iou(a: Box, b: Box) -> float:
    """Intersection over union; both edges of a box belong to it."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1, 0) * max(y1 - y0 + 1, 0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union else 0.0


def relations(a: Box, b: Box, threshold: float) -> set[Relation]:
    """How a lies to b: none, one, or two on a diagonal."""
    offset = [(a[k] + a[k + 2]) / 2 - (b[k] + b[k + 2]) / 2 for k in (0, 1)]
    sizes = [abs(a[k + 2] - a[k]) + abs(b[k + 2] - b[k]) for k in (0, 1)]
    shrunk = [math.copysign(max(abs(o) - threshold * d, 0), o) for o, d in zip(offset, sizes, strict=True)]
    if all(abs(s) < NOWHERE for s in shrunk):
        return set()
    x, y = (s / math.hypot(*offset) for s in shrunk)
    holds = {"left of": x < -ALONG, "right of": x > ALONG, "above": y < -ALONG, "below": y > ALONG}
    return {relation for relation in RELATIONS if holds[relation]}


def lenient(asked: Asked, seen: Scene) -> Verdict:
    """The benchmark's verdict, 0 or 1: only the ``count`` most confident objects of a clause are looked at, and more
    than that are right unless ``exclude`` forbids them."""
    reasons = _wrong(asked, seen, exact=False)
    for clause in asked.exclude:
        if (found := len(seen.found(clause))) >= clause.count:
            reasons.append(Reason("exclude", f"expected {clause.name}<{clause.count}, found {found}"))
    return Verdict(float(not reasons), tuple(reasons))


def strict(asked: Asked, seen: Scene) -> Verdict:
    """0 or 1: every count is exact, and every object of a clause's class has its colour and place."""
    reasons = _wrong(asked, seen, exact=True)
    return Verdict(float(not reasons), tuple(reasons))


def _wrong(asked: Asked, seen: Scene, exact: bool) -> list[Reason]:
    """What is wrong with the clauses of ``include``, at most one reason each."""
    reasons: list[Reason] = []
    right: list[Sequence[int] | None] = []  # the objects of each clause, where it is right
    for clause in asked.include:
        every = seen.found(clause)
        found = every if exact else every[: clause.count]
        reason = _reason(clause, found, len(every), asked, seen, right)
        right.append(None if reason else found)
        reasons += [reason] if reason else []
    return reasons


def _reason(
    clause: Clause,
    found: Sequence[int],
    number: int,
    asked: Asked,
    seen: Scene,
    right: Sequence[Sequence[int] | None],
) -> Reason | None:
    name, count, color, relation = clause.name, clause.count, clause.color, clause.relation
    if len(found) != count:
        return Reason("count", f"expected {name}{'>' if number < count else '='}={count}, found {number}")
    if color is not None and (having := seen.colored(clause, found)) < count:
        others = sorted({seen.color_of(name, index) for index in found} - {color})
        return Reason("color", f"expected {color} {name}>={count}, found {having} {color}; and {', '.join(others)}")
    if relation is None:
        return None
    target, there = asked.include[clause.target], right[clause.target]
    if there is None:
        return Reason("no_target", f"no {target.name} for {name} to be {relation}")
    if not all(seen.related(clause, found, target, there)):
        return Reason("position", f"expected {name} {relation} {target.name}")
    return None


def graded(asked: Asked, seen: Scene) -> Verdict:
    """A score in [0, 1] with the reasons of ``strict``: the mean over everything that ``include`` asks for.

    Of each clause, with its n most confident objects: 1 - |n - found| / n, not below 0; the share of n that has the
    colour; the share of pairs with the clause's target that has the relation.
    """
    terms: list[float] = []
    for clause in asked.include:
        n, every = clause.count, seen.found(clause)
        best = every[:n]
        terms.append(max(0.0, 1 - abs(n - len(every)) / n))
        if clause.color is not None:
            terms.append(seen.colored(clause, best) / n)
        if clause.relation is not None:
            target = asked.include[clause.target]
            holds = seen.related(clause, best, target, seen.found(target)[: target.count])
            terms.append(sum(holds) / (n * target.count))
    return Verdict(_mean(terms), strict(asked, seen).reasons)


def flow_grpo(asked: Asked, seen: Scene) -> Verdict:
    """The training reward of Flow-GRPO (arXiv 2505.05470) as its code computes it, with the reasons of ``strict``.

    Not bounded below: many objects too many give large negative scores. An object on the wrong side earns the term of
    the right side, too.
    """
    terms: list[float] = []
    right: list[Sequence[int] | None] = []
    for clause in asked.include:
        n, found = clause.count, seen.found(clause)
        terms.append(1 - abs(n - len(found)) / n)
        reason = _reason(clause, found, len(found), asked, seen, right)
        right.append(None if reason else found)
        if len(found) != n:
            terms += [0.0] * (clause.color is not None or clause.relation is not None)
            continue
        if clause.color is not None:
            terms.append(1 - abs(n - seen.colored(clause, found)) / n)
        match reason.kind if reason else "":
            case "no_target":
                terms.append(0.0)
            case "position":
                terms += [0.0, 1.0]
            case "":
                terms += [1.0] * (clause.relation is not None)
    return Verdict(_mean(terms), strict(asked, seen).reasons)


def _mean(terms: Sequence[float]) -> float:
    return sum(terms) / len(terms) if terms else 0.0


Form = Literal["lenient", "strict", "graded", "flow-grpo"]
FORMS: dict[Form, Callable[[Asked, Scene], Verdict]] = {
    "lenient": lenient,
    "strict": strict,
    "graded": graded,
    "flow-grpo": flow_grpo,
}
