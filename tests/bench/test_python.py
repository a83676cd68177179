"""Runs from Python: what a person types in a notebook."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

import t2ialign
from t2ialign.errors import SpecError, UsageError
from t2ialign.run.opened.loading import loading
from t2ialign.spec import toml


def test_a_run_and_what_it_gave(toy_spec, tmp_path):
    run = t2ialign.run(toy_spec(), {"run.steps": 2, "run.name": "from", "backend.lora.rank": 1}, quiet=True)
    assert run.path == tmp_path / "runs" / "from"
    assert (run.spec.run.steps, run.spec.backend_config.lora.rank) == (2, 1)
    assert [line["step"] for line in run.metrics][-2:] == [1, 2]
    assert {"reward/toy-redness", "seconds"} <= set(run.metrics.columns)
    assert run.summary["paired"]["tuned"]["toy-redness"]["win_rate"] >= 0
    images = run.images
    assert [image.prompt for image in images["base"]] == [image.prompt for image in images["tuned"]]
    assert images["tuned"][0].path.is_file()
    assert images["tuned"][0].scores.keys() == {"toy-redness"}
    assert run.lora.name == "pytorch_lora_weights.safetensors"
    assert run.report == run.path / "report.html"
    again = t2ialign.open_run(run.path)
    assert again.summary == run.summary
    shown = again._repr_html_()
    assert "toy-redness" in shown
    assert "data:image/png" in shown
    assert "<td>" in run.metrics._repr_html_()
    assert "<img" in images["tuned"][0]._repr_html_()
    longer = again.resume({"run.steps": 3}, quiet=True)
    assert longer.metrics[-1]["step"] == 3


def test_errors_are_the_commands_own(toy_spec, tmp_path):
    with pytest.raises(SpecError, match=r"run\.stepz"):
        t2ialign.run(toy_spec(), {"run.stepz": 2})
    with pytest.raises(UsageError, match="no run directory"):
        t2ialign.open_run(tmp_path / "nothing")


def test_importing_it_and_naming_a_run_stay_light():
    code = "import sys, t2ialign; t2ialign.run; t2ialign.open_run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_values_become_toml():
    found = toml.assignments({"a.b": [1, "x\ny"], "c": {"k": True, "n": 1e-3}, "d": (0.5,)})
    assert [toml.value(text.partition("=")[2]) for text in found] == [[1, "x\ny"], {"k": True, "n": 1e-3}, [0.5]]
    assert toml.assignments(["a=1"]) == ["a=1"]


def test_loading_puts_the_garbage_collector_back():
    for collecting in (True, False):
        (gc.enable if collecting else gc.disable)()
        try:
            with loading():
                assert not gc.isenabled()
            assert gc.isenabled() is collecting
        finally:
            gc.enable()
