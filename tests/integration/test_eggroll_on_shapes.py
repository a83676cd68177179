"""EGGROLL on the shapes world's Sana Sprint: exports, micro-batches and kills on the real code path."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.spec.checkpoints import package_path
from t2ialign.spec.model import Spec

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "specs" / "quickstart.toml"
#: The quickstart at a size for tests; everything else as it is.
SMALL = [
    "run.steps=4",
    "run.checkpoint_every=1",
    "optimizer.population=4",
    "prompts.per_step=6",
    "backend.lora.init_prompts=24",
    "evaluation.limit=12",
    "evaluation.images_per_prompt=1",
]
pytestmark = pytest.mark.slow


def small_spec(out: Path, *overrides: str) -> Spec:
    return specs.load(QUICKSTART, [*SMALL, f'run.out="{out}"', *overrides])


def delivered(run: Path) -> tuple[str, dict[str, list]]:
    tensors = load_file(run / "export" / "pytorch_lora_weights.safetensors")
    return (run / "metrics.jsonl").read_text(), {name: tensor.tolist() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small run that was never interrupted."""
    return runner.start(small_spec(tmp_path_factory.mktemp("runs")), Display(quiet=True)).path


def test_the_export_loads_in_a_script_that_knows_only_diffusers(finished, tmp_path):
    prompts = ["a red circle", "a blue square and a green triangle", "three yellow circles", "a purple square"]
    checkpoint = package_path("pkg:t2ialign_shapes/checkpoints/sprint-washed")
    script = ROOT / "tests" / "integration" / "plain_diffusers.py"
    out = tmp_path / "images.safetensors"
    command = [sys.executable, str(script), str(checkpoint), str(finished / "export"), str(out), "5", *prompts]
    subprocess.run(command, check=True, timeout=300)
    plain = load_file(out)

    _, problem, _ = runner.restore(finished, display=Display(quiet=True))
    conditioning, seeds = problem.backend.encode(prompts), [5, 6, 7, 8]
    tuned = problem.generate(conditioning, seeds)
    with problem.base():
        base = problem.generate(conditioning, seeds)
    assert (plain["tuned"] - tuned).abs().max() < 1e-4
    assert (plain["base"] - base).abs().max() < 1e-4
    assert (plain["tuned"] - plain["base"]).abs().max() > 1e-3


def test_fitness_does_not_depend_on_the_micro_batch(tmp_path):
    metrics, deltas = [], []
    for size in (1, 7, 64):
        problem = assemble(small_spec(tmp_path, f"run.micro_batch={size}"), report=lambda text: None)
        optimizer = load_optimizer(problem)
        metrics.append(optimizer.step(0).metrics)
        deltas.append({name: p.detach().clone() for name, p in problem.adapter.parameters().items()})
    assert metrics[0]["population/std"] > 0
    for other, delta in zip(metrics[1:], deltas[1:], strict=True):
        for name in ("population/mean", "population/max", "population/min", "reward/shapes-exact", "update/norm"):
            assert other[name] == pytest.approx(metrics[0][name], abs=1e-3), name
        for name, tensor in delta.items():
            assert torch.allclose(tensor, deltas[0][name], atol=1e-3), name


def test_kill_nine_at_random_moments_then_resume(finished, tmp_path):
    """Killed while it loads, steps, exports or evaluates: metrics and LoRA equal those of the unbroken run."""
    moments = random.Random(3)
    out = tmp_path / "runs"
    overrides = [text for item in [*SMALL, f'run.out="{out}"'] for text in ("--set", item)]
    victim = out / "quickstart"
    command = ["run", str(QUICKSTART), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "t2ialign", *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if kills < 3:
            wait_for_something(victim, process)
            time.sleep(moments.uniform(0, 1.5))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        _, errors = process.communicate(timeout=300)
        command = ["resume", str(victim)]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert kills
    assert delivered(victim) == delivered(finished)


def wait_for_something(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the run has written one more line of metrics, or ends."""
    metrics = run / "metrics.jsonl"
    before = metrics.read_text() if metrics.exists() else ""
    while process.poll() is None and (not metrics.exists() or metrics.read_text() == before):
        time.sleep(0.02)


def test_two_processes_give_the_result_of_one(finished, tmp_path):
    """torchrun with two ranks on the CPU: the population is sharded, only scores are exchanged."""
    out = tmp_path / "runs"
    overrides = [text for item in [*SMALL, f'run.out="{out}"'] for text in ("--set", item)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "t2ialign", "run", str(QUICKSTART), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, env=environment, capture_output=True)
    one, two = (
        load_file(run / "export" / "pytorch_lora_weights.safetensors") for run in (finished, out / "quickstart")
    )
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-3), name
    steps = [json.loads(line)["step"] for line in (out / "quickstart" / "metrics.jsonl").read_text().splitlines()]
    assert [step for step in steps if step] == [1, 2, 3, 4]
    assert json.loads((out / "quickstart" / "evaluation" / "summary.json").read_text())["images"] == 12
