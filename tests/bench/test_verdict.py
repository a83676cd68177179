"""The first line of a report, and what needs no chart."""

from __future__ import annotations

from t2ialign.report import page, verdict
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs


def pair(difference: float, direction: str) -> dict:
    return {"difference": difference, "se": 0.1, "ci95": [0, 1], "win_rate": 0.5, "direction": direction}


def test_the_verdict_tells_optimised_and_held_out_rewards_time_and_memory():
    names = {"clip": {"mean": 1.0, "se": 0.1}, "exact": {"mean": 0.5, "se": 0.1}}
    summary = {
        "images": 12,
        "prompts": 6,
        "held_out": ["exact"],
        "variants": {"base": names, "tuned": names},
        "paired": {"tuned": {"clip": pair(0.5, "up"), "exact": pair(-0.25, "unclear")}},
    }
    timing = [{"step": 1, "seconds": 2.0, "peak_memory_mb": 900.0}, {"step": 2, "seconds": 2.0, "peak_memory_mb": None}]
    assert verdict.verdict(summary, timing, "4.0 s") == (
        "clip rose by 0.5000 ± 0.1000. Held out: exact did not change beyond doubt (-0.2500 ± 0.1000). On 6 prompts"
        " that base and tuned share; 4.0 s in steps, peak memory 900 MB."
    )
    assert verdict.verdict(None, timing, "4.0 s") == ""


def test_constant_series_are_one_line_and_rewards_keep_their_charts():
    lines = [{"step": i, "reward/r": 1.0, "rate": 0.1, "norm": float(i), "lost": None} for i in (1, 2, 3)]
    assert verdict.constants(lines) == {"rate": 0.1}


def test_the_page_begins_with_the_verdict_and_says_how_to_use_and_repeat_the_run(toy_spec):
    run = runner.start(specs.load(toy_spec()), Display(quiet=True))
    text = page.page(run)
    assert text.index('class="verdict"') < text.index("Base against tuned")
    assert "t2ialign.lora.file.load_lora_file" in text
    assert "t2ialign run spec.toml" in text
    assert "It is not finished" not in text
