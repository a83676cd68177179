"""The shipped specs, and a noise network in diffusers' own pipeline."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign.storage import images

SPECS = Path(__file__).parents[2] / "specs"


@pytest.mark.parametrize("name", ["fk", "evo", "zero-order", "hyper-noise"])
def test_shipped_specs_are_valid(name):
    spec = specs.load(SPECS / f"{name}-shapes.toml")
    plan = spec.optimizer_config.plan(spec)
    assert plan.steps >= 1
    if name in ("fk", "evo"):
        assert plan.evaluations == 64


@pytest.mark.slow
def test_the_snippet_draws_the_runs_image(tmp_path, monkeypatch):
    """The model card's code, in diffusers, from the exported file: the same image as the run's own network gives."""
    small = ["prompts.per_step=4", "optimizer.warmup=0", "optimizer.learning_rate=1e-2", "backend.lora.rank=2"]
    spec = specs.load(SPECS / "hyper-noise-shapes.toml", [*small, "backend.lora.alpha=4"])
    problem = assemble(spec, report=lambda text: None, prompts=["a red circle", "a blue square"])
    optimizer = load_optimizer(problem)
    for index in range(2):
        optimizer.step(index)
    optimizer.export(tmp_path)
    assert "are the run's" in optimizer.check(tmp_path)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code.replace('"a prompt"', '"a red circle"'), found)
    wanted = optimizer.generate(problem.conditioning[[0]], [0])
    with problem.base():
        base = problem.generate(problem.conditioning[[0]], [0])
    drawn = torch.tensor(list(found["image"].tobytes())).view(*found["image"].size, 3)
    pixels = torch.tensor(list(images.to_pil(wanted[0]).tobytes())).view_as(drawn)
    plain = torch.tensor(list(images.to_pil(base[0]).tobytes())).view_as(drawn)
    assert (drawn - pixels).abs().max() <= 1
    assert (drawn - plain).abs().max() > 1


@pytest.mark.slow
def test_the_comparison_measures_searches(tmp_path):
    """Every search of the table has the same evaluations, and one that is measured has really searched."""
    place = SPECS.parent / "tools" / "compare_searches.py"
    found = importlib.util.spec_from_file_location("compare_searches", place)
    tool = importlib.util.module_from_spec(found)
    sys.modules["compare_searches"] = tool
    found.loader.exec_module(tool)
    prompts = tool.chosen_prompts(2, tmp_path)
    spent = {name: tool.evaluations(tool.spec_of(one, 0, prompts), one) for name, one in tool.SEARCHES.items()}
    for name, evaluations in spent.items():
        assert evaluations == pytest.approx(tool.BUDGET, rel=0.1), name
    tool.measure("image-select (one step)", 0, prompts, tmp_path)
    result = json.loads((tmp_path / "image-select-one-step-0.json").read_text())
    assert result["summary"]["paired"]["tuned"]["clip"]["difference"] > 0.1
    assert "| image-select | sd-turbo, 1 step | 64 | 0 |" in tool.table(tmp_path, [0])[2]
