"""Noise optimisation of the embedded one-step model with its learned reward."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs

SPEC = Path(__file__).parents[2] / "specs" / "reno-shapes.toml"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("a red circle left of a blue square\nthree green triangles\n")
    return file


@pytest.mark.slow
def test_the_readme_draws_the_best_image_with_diffusers_alone(prompts, tmp_path, monkeypatch):
    overrides = [f"prompts.file={prompts}", f"run.out={tmp_path}", "run.steps=5", "prompts.per_step=2"]
    run = runner.start(specs.load(SPEC, overrides), Display(quiet=True))
    summary = json.loads((run.path / "evaluation" / "summary.json").read_text())
    assert summary["paired"]["tuned"]["clip"]["win_rate"] == 1.0
    monkeypatch.chdir(run.path / "export")
    readme = Path("README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    assert "t2ialign." not in code
    script: dict = {}
    exec(compile(code, "README.md", "exec"), script)
    drawn = numpy.asarray(script["image"]).astype(int)
    saved = numpy.asarray(Image.open("images/00000-0/best.png")).astype(int)
    first = numpy.asarray(Image.open("images/00000-0/initial.png")).astype(int)
    assert abs(drawn - saved).max() <= 1
    assert abs(first - saved).max() > 10


def test_recomputed_activations_give_the_same_noise(prompts):
    found = []
    for parts in ("[]", '["network", "decoder"]'):
        overrides = [f"prompts.file={prompts}", "run.steps=3", f"backend.gradient_checkpointing={parts}"]
        optimizer = load_optimizer(assemble(specs.load(SPEC, overrides), report=lambda text: None))
        for index in range(3):
            optimizer.step(index)
        found.append(torch.stack([optimizer.best([search]).noise for search in optimizer.searches]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[0][0], found[0][1])
