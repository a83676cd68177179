"""DAV on the shapes world's Stable Diffusion: the spec that is shipped, at a size for tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.spec.checkpoints import package_path
from t2ialign.storage.run_directory import RunDir
from t2ialign_solvers.config import DdimConfig
from t2ialign_solvers.ddim import Ddim

SPEC = Path(__file__).parents[2] / "specs" / "dav-shapes.toml"
SMALL = [
    "run.steps=2",
    "prompts.per_step=2",
    "sampler.steps=4",
    "optimizer.learning_rate=1e-2",
    "evaluation.limit=6",
]
PROMPTS = ["a red circle", "a blue square and a green triangle", "three yellow circles", "a purple square"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return runner.start(specs.load(SPEC, [*SMALL, f'run.out="{out}"']), Display(quiet=True)).path


def test_diversity_and_held_out_rewards_are_reported_everywhere(finished):
    names = {"clip", "shapes-exact", "shapes-graded", "diversity"}
    summary = json.loads((finished / "evaluation" / "summary.json").read_text())
    assert set(summary["paired"]["tuned"]) == names
    lines = RunDir(finished).metrics()
    assert {name for name in lines[0] if name.startswith("reward/")} == {f"reward/{name}" for name in names}
    assert all(line["reward/diversity"] > 0 for line in lines)


def test_the_export_loads_in_a_script_that_knows_only_diffusers(finished, tmp_path):
    """With the deterministic sampler, so that there is one right picture."""
    _, problem, _ = runner.restore(finished, display=Display(quiet=True))
    guidance = problem.spec.backend_config.guidance_scale
    script, out = Path(__file__).with_name("plain_stable_diffusion.py"), tmp_path / "images.safetensors"
    checkpoint = package_path(problem.spec.backend_config.checkpoint)
    arguments = [checkpoint, finished / "export", out, 10, guidance, 5, *PROMPTS]
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True, timeout=300)
    plain = load_file(out)

    conditioning, sampler = problem.backend.encode(PROMPTS), Ddim(DdimConfig(steps=10))
    with torch.no_grad():
        tuned = problem.backend.generate(conditioning, [5, 6, 7, 8], sampler)
        with problem.base():
            base = problem.backend.generate(conditioning, [5, 6, 7, 8], sampler)
    assert (plain["tuned"] - tuned).abs().max() < 1e-4
    assert (plain["base"] - base).abs().max() < 1e-4
    assert (plain["tuned"] - plain["base"]).abs().max() > 1e-3


def test_killed_in_a_step_and_resumed_equals_uninterrupted(finished, tmp_path):
    """kill -9 after the first step has been logged, in the middle of the second or of what follows."""
    overrides = [text for item in [*SMALL, f'run.out="{tmp_path}"'] for text in ("--set", item)]
    command = [sys.executable, "-m", "t2ialign"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    victim = tmp_path / finished.name
    process = subprocess.Popen([*command, "run", str(SPEC), *overrides], env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (victim / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    subprocess.run(
        [*command, "resume", str(victim)], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=300
    )
    for file in ("metrics.jsonl", "evaluation/scores.jsonl"):
        assert (victim / file).read_bytes() == (finished / file).read_bytes(), file
    ours, theirs = (load_file(run / "export" / "pytorch_lora_weights.safetensors") for run in (victim, finished))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
