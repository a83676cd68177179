"""Whole runs of noise optimisation on the toy world."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from t2ialign import runner
from t2ialign import spec as specs
from t2ialign.progress import Display

QUIET = Display(quiet=True)


def searches(run) -> dict[str, dict]:
    """Everything delivered, by image."""
    return {
        folder.name: {
            "noise": load_file(folder / "latents.safetensors")["latents"],
            "picture": (folder / "best.png").read_bytes(),
            "trajectory": (folder / "trajectory.jsonl").read_text(),
            **json.loads((folder / "search.json").read_text()),
        }
        for folder in sorted((run.path / "export" / "images").iterdir())
    }


def test_a_run_improves_every_image_and_delivers_it(reno_spec):
    run = runner.start(specs.load(reno_spec()), QUIET)
    found = searches(run)
    assert list(found) == [f"{index:05d}-0" for index in range(5)]
    for one in found.values():
        rewards = one["rewards"]
        assert rewards["best"]["toy-redness"] > rewards["initial"]["toy-redness"]
        assert set(rewards["best"]) == {"toy-redness", "toy-darkness"}
        assert one["reward"] == pytest.approx(rewards["best"]["toy-redness"], abs=1e-6)
        lines = [json.loads(line) for line in one["trajectory"].splitlines()]
        assert [line["iteration"] for line in lines] == list(range(6))
        assert max(line["total"] for line in lines) == one["reward"]
        assert lines[one["best_iteration"]]["total"] == one["reward"]
        assert lines[-1]["gradient_norm"] is None  # nothing moves after the last image
    summary = json.loads((run.path / "export" / "summary.json").read_text())
    assert summary["paired"]["tuned"]["toy-redness"]["win_rate"] == 1.0
    evaluation = json.loads((run.path / "evaluation" / "summary.json").read_text())
    for variant in ("base", "tuned"):  # the evaluation shows the run's own images
        assert evaluation["variants"][variant]["toy-redness"]["mean"] == pytest.approx(
            summary["variants"][variant]["toy-redness"]["mean"], abs=1e-6
        )
