"""A run that was started before modules moved goes on after it, and gives the numbers that it would have given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from t2ialign.run import runner
from t2ialign.run.display import Display

OLD = Path(__file__).parents[1] / "golden" / "run-before-the-move"


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_an_old_run_directory_resumes_to_its_own_numbers(tmp_path):
    """Metrics and scores in the folder are those of the unbroken old run; its only checkpoint is older."""
    run = tmp_path / OLD.name
    shutil.copytree(OLD, run)
    runner.resume(run, Display(quiet=True))
    expected, found = lines(OLD / "metrics.jsonl"), lines(run / "metrics.jsonl")
    assert len(found) == len(expected) > 2
    for old, new in zip(expected, found, strict=True):
        assert {name: new[name] for name in old} == pytest.approx(old, rel=1e-4, abs=1e-5)
    for old, new in zip(
        lines(OLD / "evaluation" / "scores.jsonl"), lines(run / "evaluation" / "scores.jsonl"), strict=True
    ):
        for variant in ("base", "tuned"):
            assert new[variant] == pytest.approx(old[variant], rel=1e-4, abs=1e-4)
    assert (run / "export" / "pytorch_lora_weights.safetensors").is_file()
