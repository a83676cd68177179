"""Numbers of evaluations: over distinct prompts, over pairs that have both scores, and as scipy gives them."""

from __future__ import annotations

import io
import math

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from t2ialign.cli import tables
from t2ialign.evaluation import comparison
from t2ialign.evaluation.evaluate import evaluate
from t2ialign.evaluation.statistics import (
    category_of,
    estimate,
    paired,
    student_quantile,
    summarise,
    wilson_interval,
)
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs

NAN = math.nan
numbers = st.floats(-1e3, 1e3)
columns = st.lists(st.tuples(st.sampled_from("abcdef"), numbers, numbers), min_size=2, max_size=30)


class WithData(str):
    data: dict


@given(columns)
def test_intervals_are_those_of_a_paired_t_test_over_the_means_of_prompts(rows):
    texts, base, tuned = zip(*rows, strict=True)
    found = paired(base, tuned, texts)
    means = {
        text: [sum(row[side] for row in rows if row[0] == text) / texts.count(text) for side in (1, 2)]
        for text in dict.fromkeys(texts)
    }
    if len(means) < 2:
        assert found["se"] is None
        assert found["ci95"] is None
        return
    ours, theirs = zip(*means.values(), strict=True)
    difference = [there - here for here, there in means.values()]
    assert found["se"] == pytest.approx(scipy.stats.sem(difference), rel=1e-6, abs=1e-9)
    assert found["prompts"] == len(means)
    if found["se"] > 1e-6:
        expected = scipy.stats.ttest_rel(theirs, ours).confidence_interval(0.95)
        assert found["ci95"] == pytest.approx([expected.low, expected.high], rel=1e-6, abs=1e-6)


@given(columns, st.integers(2, 5))
def test_repeating_every_line_changes_nothing_when_the_images_are_the_same(rows, times):
    once, often = (
        summarise({"base": {"r": base}, "tuned": {"r": tuned}}, texts, ["r"])
        for texts, base, tuned in (zip(*rows, strict=True), zip(*(rows * times), strict=True))
    )
    for section in ("variants", "paired"):
        for variant, found in once[section].items():
            for key, value in found["r"].items():
                repeated = often[section][variant]["r"][key]
                if isinstance(value, float | list):
                    assert repeated == pytest.approx(value, rel=1e-6, abs=1e-6)
                elif key != "images":
                    assert repeated == value
    assert (often["images"], often["prompts"]) == (times * once["images"], once["prompts"])


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_repeating_every_line_with_new_images_is_sampling_more_images_of_each_prompt(seed, times):
    """The same images, once as more images of a prompt and once as repeated lines."""
    draw = scipy.stats.norm(scale=2.0).rvs(size=(12, times), random_state=seed)
    prompts = [f"prompt {number}" for number in range(12)]
    together = estimate([v for row in draw.tolist() for v in row], [p for p in prompts for _ in range(times)])
    repeated = estimate([v for row in draw.T.tolist() for v in row], prompts * times)
    assert (together.se, together.prompts) == (pytest.approx(repeated.se), 12)


@given(st.integers(1, 500), st.data())
def test_the_interval_of_a_win_rate_is_wilsons(count, data):
    wins = data.draw(st.integers(0, count))
    expected = scipy.stats.binomtest(wins, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(wins / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(1, 2000))
def test_the_quantile_is_students(freedom):
    assert student_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)


def test_images_of_a_prompt_are_one_observation():
    found = paired([0.0] * 6, [1.0, 1.0, 1.0, 3.0, 3.0, 3.0], ["a"] * 3 + ["b"] * 3)
    assert (found["difference"], found["se"], found["prompts"], found["images"]) == (2, pytest.approx(1), 2, 6)
    assert found["ci95"] == pytest.approx([2 - 12.7062, 2 + 12.7062], abs=1e-3)
    assert found["direction"] == "unclear"
    assert found["win_rate"] == 1
    assert found["win_ci95"][0] == pytest.approx(0.342, abs=1e-3)  # of two prompts, not of six images


def test_an_image_that_was_drawn_again_is_a_tie_whatever_its_last_bits():
    assert paired([0.5, 0.25], [0.5 + 3e-8, 0.25 - 3e-8], "ab")["win_rate"] == 0.5


def test_ties_count_half_in_the_win_rate():
    assert paired([0.0] * 4, [1.0, 0.0, 0.0, -1.0], "abcd")["win_rate"] == 0.5


def test_an_image_without_a_score_is_no_loss():
    scores = {"base": {"r": [1.0, NAN, 1.0, 1.0]}, "tuned": {"r": [2.0, 2.0, NAN, 4.0]}}
    summary = summarise(scores, list("abcd"), ["r"])
    found = summary["paired"]["tuned"]["r"]
    assert found["win_rate"] == 1.0
    assert (found["images"], found["left_out"]) == (2, 2)
    assert (found["base"], found["mean"], found["difference"]) == (1, 3, 2)
    assert [summary["variants"][name]["r"]["mean"] for name in ("base", "tuned")] == [1, 3]
    assert summary["left_out"] == {"r": 2}
    text = comparison.table(summary)
    assert "left out for want of a score: r 2" in text
    assert text.splitlines()[2].split(" | ")[-1] == "2 |"


def test_nothing_scored_gives_no_number():
    summary = summarise({"base": {"r": [NAN, None]}, "tuned": {"r": [1.0, 1.0]}}, ["a", "b"], ["r"])
    found = summary["paired"]["tuned"]["r"]
    assert [found[key] for key in ("difference", "se", "ci95", "win_rate", "win_ci95", "direction")] == [None] * 6
    assert summary["variants"]["tuned"]["r"] == {"mean": None, "se": None}
    assert comparison.table_rows(summary) == [["r", "-", "-", "-", "-", "-", "-", "2"]]


def test_a_third_variant_has_its_own_pairs():
    scores = {"base": {"r": [0.0, 0.0, NAN]}, "tuned": {"r": [1.0, NAN, 1.0]}, "other": {"r": [NAN, 3.0, 1.0]}}
    summary = summarise(scores, list("abc"), ["r"])
    assert {v: pair["r"]["difference"] for v, pair in summary["paired"].items()} == {"tuned": 1, "other": 3}
    assert summary["variants"]["tuned"]["r"]["mean"] == 1


def test_categories_have_the_same_statistics_as_the_whole():
    prompts, kinds = list("abcd"), ["colour", "colour", "count", None]
    scores = {"base": {"r": [0.0] * 4}, "tuned": {"r": [1.0, 2.0, -1.0, 5.0]}}
    summary = summarise(scores, prompts, ["r"], categories=kinds)
    assert list(summary["categories"]) == ["colour", "count"]
    for kind, rows in (("colour", [0, 1]), ("count", [2])):
        alone = summarise(
            {v: {"r": [s["r"][row] for row in rows]} for v, s in scores.items()}, [prompts[row] for row in rows], ["r"]
        )
        for key in ("images", "prompts", "variants", "paired"):
            assert summary["categories"][kind][key] == alone[key]
    assert [(name, row.difference) for name, _, row in comparison.category_rows(summary)] == [
        ("colour", 1.5),
        ("count", -1),
    ]
    assert "| r | colour | 2 | tuned | 0 | 1.5 |" in comparison.table(summary)
    assert "categories" not in summarise(scores, prompts, ["r"], categories=[None] * 4)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"tag": "counting", "include": []}, "counting"),  # GenEval
        ({"Category": "Animals", "Challenge": "Imagination"}, "Animals"),  # PartiPrompts
        ({"category": "", "tag": "colors"}, "colors"),
        ({}, None),
    ],
)
def test_a_prompts_category_is_what_its_file_calls_it(data, expected):
    prompt = WithData("a red cat")
    prompt.data = data
    assert category_of(prompt) == expected
    assert category_of("a red cat") is None


def test_held_out_rewards_are_marked_and_have_a_direction():
    scores = {"base": {"r": [0.0] * 4, "h": [0.0] * 4}, "tuned": {"r": [1.0, 1.1, 0.9, 1.0], "h": [-1.0, -1.1, -1, -1]}}
    summary = summarise(scores, list("abcd"), ["r", "h"], held_out=["h"])
    assert [(row[0], row[4]) for row in comparison.table_rows(summary)] == [("r", "↑"), ("h (held out)", "↓")]


def test_a_table_fits_a_narrow_terminal():
    """Three rewards as the quickstart has them, in 80 columns, with no number cut."""
    base, tuned = [0.7, 0.6, 0.8] * 63, [2.6, 2.5, 2.8] * 63
    names = ["clip", "shapes-exact", "shapes-graded"]
    scores = {"base": dict.fromkeys(names, tuple(base)), "tuned": dict.fromkeys(names, tuple(tuned))}
    summary = summarise(scores, [str(n) for n in range(189)], names, held_out=names[1:])
    for width, win_rate in ((80, "100 %"), (120, "100 % (98–100)")):
        console = Console(width=width, file=io.StringIO())
        console.print(tables.comparison(summary, console.width))
        text = console.file.getvalue()
        assert "…" not in text
        assert win_rate in text
        assert ("shapes-graded *" if width == 80 else "shapes-graded (held out)") in text
        assert "↑" in text


def test_a_table_of_several_samplers_fits_a_narrow_terminal():
    names, variants = ["clip", "shapes-exact"], ["base", "tuned", "ddim-8", "dpmpp-2m-8"]
    numbers = [5.736, 6.113, 5.9] * 63
    scores = {
        variant: dict.fromkeys(names, tuple(x + i * (x - 5.5) for x in numbers)) for i, variant in enumerate(variants)
    }
    summary = summarise(scores, [str(n) for n in range(189)], names, held_out=names[1:])
    summary["cost"] = {variant: {"evaluations": 8, "depth": 8} for variant in variants}
    shown = {}
    for width in (80, 160):
        console = Console(width=width, file=io.StringIO())
        console.print(tables.comparison(summary, console.width))
        shown[width] = console.file.getvalue()
        assert "…" not in shown[width]
        assert all(shown[width].count(variant) == 2 for variant in variants[2:])
    assert "evaluations" in shown[160]
    assert "evaluations" not in shown[80]  # the report has them


def test_small_numbers_show_their_error():
    summary = summarise({"base": {"r": [0.0] * 3}, "tuned": {"r": [1e-5, 2e-5, 3e-5]}}, list("abc"), ["r"])
    assert next(comparison.rows(summary)).measured == "+0.0000200 ± 0.0000058"


def test_a_file_with_every_line_four_times_says_what_four_images_a_prompt_say(toy_spec, tmp_path):
    """GenEval's training list is such a file: 553 prompts in 2212 lines."""
    found = []
    for name, times, images in (("once", 1, 4), ("four", 4, 1)):
        path = toy_spec(evaluation={"prompts": f"{name}.txt", "images_per_prompt": images})
        (path.parent / f"{name}.txt").write_text("red\ngreen\nblue\nblack\n" * times)
        problem = assemble(specs.load(path))
        optimizer = load_optimizer(problem)
        optimizer.step(0)
        found.append(evaluate(problem, optimizer, tmp_path / name))
    once, four = found
    assert (four["images"], four["prompts"]) == (once["images"], once["prompts"]) == (16, 4)
    assert four["paired"]["tuned"]["toy-redness"]["se"] > 0
    for section in ("variants", "paired"):
        for variant, rewards in once[section].items():
            for key, value in rewards["toy-redness"].items():
                other = four[section][variant]["toy-redness"][key]
                assert other == (pytest.approx(value, rel=1e-5) if isinstance(value, float | list) else value)
    assert "16 images of 4 distinct prompts" in (tmp_path / "four" / "table.md").read_text()
