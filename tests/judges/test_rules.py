"""GenEval's rules against the benchmark's and Flow-GRPO's own answers, and the corrected graded form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2ialign_judges import rules
from t2ialign_judges.rules import Detection, Limits

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "judges_geneval.json").read_text())


def seen_in(case):
    asked = rules.read(case["metadata"])
    detections = {
        name: [Detection(tuple(row[:4]), row[4]) for row in rows] for name, rows in case["detections"].items()
    }
    limits = Limits(**GOLDEN["defaults"] | case.get("options", {}))
    colors = case.get("colors", {})
    return asked, rules.scene(asked, detections, lambda name, index: colors[name][index], limits)


def refused(case):
    """Whether the originals raise somewhere, or can never say yes."""
    relations = {clause["position"][0] for clause in case["metadata"].get("include", []) if "position" in clause}
    return bool(case["expected"].keys() & {"error", "strict_error"} or relations - set(rules.RELATIONS))


def test_what_cannot_be_judged_is_told_when_the_file_is_read():
    cases = [case for case in GOLDEN["cases"] if refused(case)]
    assert len(cases) == 3
    for case in cases:
        with pytest.raises(ValueError, match=r"include\[\d\]\.(count|position)"):
            rules.read(case["metadata"])


CASES = [case for case in GOLDEN["cases"] if not refused(case)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_published_rules(case):
    wanted = case["expected"]
    asked, seen = seen_in(case)
    assert {name: list(kept) for name, kept in seen.kept.items() if kept} == wanted["kept"]
    verdict = rules.lenient(asked, seen)
    assert bool(verdict.score) == wanted["correct"]
    assert [reason.kind for reason in verdict.reasons] == wanted["reasons"]
    verdict = rules.strict(asked, seen)
    assert bool(verdict.score) == wanted["strict_correct"]
    assert [reason.kind for reason in verdict.reasons] == wanted["strict_reasons"]
    assert rules.flow_grpo(asked, seen).score == pytest.approx(wanted["score"], abs=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_graded_form_is_bounded_and_full_marks_are_the_strict_verdict(case):
    asked, seen = seen_in(case)
    score = rules.graded(asked, seen).score
    assert 0 <= score <= 1
    if asked.include:
        assert (score == 1) == bool(rules.strict(asked, seen).score)


def at(x, y=100, score=0.95):
    return Detection((x, y, x + 40, y + 40), score)


DOG_LEFT_OF_BENCH = {
    "tag": "position",
    "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
}


@pytest.mark.parametrize(
    ("metadata", "detections", "score"),
    [
        ({"include": [{"class": "dog", "count": 1}]}, {"dog": [at(10 * i) for i in range(16)]}, 0.0),
        ({"include": [{"class": "dog", "count": 4}]}, {"dog": [at(0), at(50), at(99)]}, 0.75),
        (DOG_LEFT_OF_BENCH, {"dog": [at(300)], "bench": [at(10)]}, 2 / 3),
        (DOG_LEFT_OF_BENCH, {"dog": [at(10)], "bench": [at(300)]}, 1.0),
        (DOG_LEFT_OF_BENCH, {"dog": [at(10)]}, 1 / 3),
        ({"include": [{"class": "dog", "count": 1, "color": "red"}]}, {"dog": [at(0), at(50)]}, 0.5),
        ({"include": []}, {}, 0.0),
    ],
)
def test_the_graded_form_by_hand(metadata, detections, score):
    asked = rules.read(metadata)
    seen = rules.scene(asked, detections, lambda name, index: "red", Limits())
    assert rules.graded(asked, seen).score == pytest.approx(score, abs=1e-12)


def test_reasons_are_sentences():
    asked = rules.read(DOG_LEFT_OF_BENCH)
    seen = rules.scene(asked, {"dog": [at(300)], "bench": [at(10)]}, lambda name, index: "", Limits())
    assert rules.lenient(asked, seen).words == "expected dog left of bench"
    asked = rules.read({"include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "dog", "count": 2}]})
    seen = rules.scene(asked, {"cup": [at(1)], "dog": [at(9)]}, lambda name, index: "pink", Limits())
    assert rules.lenient(asked, seen).words == "expected red cup>=1, found 0 red; and pink; expected dog>=2, found 1"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"include": "dog"}, "include is 'dog'; must be a list"),
        ({"include": [{"class": "dog"}]}, r"include\[0\].count is None"),
        ({"include": [{"class": "dog", "count": True}]}, r"include\[0\].count is True"),
        ({"include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}, "left of, right of, above, below"),
        ({"include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, "must be an earlier one"),
        ({"include": [], "exclude": [{"count": 2}]}, r"exclude\[0\] is"),
    ],
)
def test_metadata_of_another_form_is_named(metadata, words):
    with pytest.raises(ValueError, match=words):
        rules.read(metadata)
