"""The comparison's results and tables."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import compare_methods as comparison

BUDGETS = {"images": 960.0, "seconds": 75.0}


def result(folder, name, seed, clip, images=960):
    def pair(difference):
        return {"difference": difference, "se": 0.05}

    base = {"clip": 5.0, "shapes-exact": 0.75, "diversity": 0.1}
    gains = {"clip": clip, "shapes-exact": -0.01, "diversity": -0.02}
    summary = {
        "variants": {"base": {reward: {"mean": mean} for reward, mean in base.items()}},
        "paired": {"tuned": {reward: pair(gain) for reward, gain in gains.items()}},
        "drift": [{"name": "diversity"}] if seed else [],
    }
    path = comparison.result_file(folder, name, seed, "images", BUDGETS)
    path.write_text(json.dumps({"images": images, "seconds": 90.4, "steps": 15, "summary": summary}))


def test_the_largest_gain_comes_first_and_seeds_are_averaged(tmp_path):
    result(tmp_path, "nft", 0, 0.1)
    result(tmp_path, "nft", 1, 0.3)
    result(tmp_path, "draft", 0, 0.4)
    rows = comparison.table(tmp_path, "images", BUDGETS, [0, 1, 2])[2:]
    assert rows == [
        "| `draft` | 1 | 960 | 90 | 5.00 → 5.40 (**+0.400** ± 0.050) | 75.0 → 74.0 (-1.0 ± 5.0) | 80 % | - |",
        "| `nft` | 2 | 960 | 90 | 5.00 → 5.20 (**+0.200** ± 0.050) | 75.0 → 74.0 (-1.0 ± 5.0) | 80 % | diversity |",
    ]
    assert comparison.table(tmp_path, "seconds", BUDGETS, [0, 1])[2:] == []


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    for budget in BUDGETS:
        comparison.result_file(tmp_path, "nft", 0, budget, BUDGETS).write_text("{}")
    monkeypatch.setattr(comparison, "assemble", lambda *_: pytest.fail("measured again"))
    assert list(comparison.measure("nft", 0, BUDGETS, tmp_path, None, 2)) == []


@pytest.mark.parametrize("name", comparison.METHODS)
def test_every_method_s_spec_is_valid_and_has_the_same_rewards(name):
    spec = comparison.spec_of(comparison.METHODS[name], 3, 5, 4, 2)
    assert [(reward.name, reward.mix.weight) for reward in spec.rewards] == [
        ("clip", 1.0),
        ("shapes-exact", 0.0),
        ("shapes-graded", 0.0),
        ("diversity", 0.0),
    ]
    assert spec.run.seed == 3
    assert len(spec.evaluation_prompts()) == 4
    assert spec.optimizer_config.plan(spec).images_per_step > 0
