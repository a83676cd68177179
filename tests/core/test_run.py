"""A whole run on the toy world: directory, resume, kills, export, evaluation."""

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

from t2ialign.errors import PartError, RewardError, UsageError
from t2ialign.evaluation.evaluate import items
from t2ialign.problem import numerics
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing import toy

QUIET = Display(quiet=True)


def delivered(run: Path) -> tuple[str, dict[str, list], str]:
    """What must not depend on how often a run was killed: equal to the last bit."""
    return (
        (run / "metrics.jsonl").read_text(),
        {k: v.tolist() for k, v in load_file(run / "export" / "pytorch_lora_weights.safetensors").items()},
        (run / "evaluation" / "summary.json").read_text(),
    )


def test_a_run_leaves_a_complete_directory(toy_spec):
    run = runner.start(specs.load(toy_spec(evaluation={"every": 2, "images_per_prompt": 2})), QUIET)
    lines = run.history()
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert ["evaluation/toy-redness" in line for line in lines] == [True, False, True, False, True]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert sorted(p.name for p in (run.path / "samples").iterdir()) == ["step-000000.png", "step-000004.png"]
    summary = json.loads((run.path / "evaluation" / "summary.json").read_text())
    assert (summary["images"], summary["prompts"]) == (10, 5)
    assert summary["paired"]["tuned"]["toy-redness"]["difference"] > 0
    assert len(list((run.path / "evaluation" / "tuned").glob("*.png"))) == 10
    assert "torch" in json.loads((run.path / "environment.json").read_text())["packages"]
    assert "finished, 4 steps" in (run.path / "report.html").read_text()
    assert not list(run.path.rglob("*.tmp"))


def test_the_resolved_spec_repeats_the_run(toy_spec, tmp_path):
    first = runner.start(specs.load(toy_spec()), QUIET)
    (tmp_path / "prompts.txt").write_text("changed\n")  # the run has its own copy
    second = runner.start(specs.load(first.path / "spec.toml"), QUIET)
    assert second.path != first.path
    assert delivered(second.path) == delivered(first.path)


def test_only_the_end_is_saved_where_checkpoints_are_none(toy_spec):
    spec = specs.load(toy_spec(), ["run.checkpoint_every=0", "run.keep_checkpoints=9"])
    run = runner.start(spec, QUIET)
    assert [folder.name for folder in (run.path / "checkpoints").iterdir()] == ["step-000004"]


def test_how_float32_is_computed_holds_for_the_runs_that_ask_for_it(toy_spec, monkeypatch):
    seen = []

    def look(*args):
        seen.append(
            (
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn.allow_tf32,
                torch.are_deterministic_algorithms_enabled(),
            )
        )
        return step(*args)

    step = toy.RandomSearch.step
    monkeypatch.setattr(toy.RandomSearch, "step", look)
    monkeypatch.setenv(numerics.CUBLAS, ":16:8")
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, False)
    asked = (["run.matmul_precision='high'", "run.deterministic=true"], ["run.matmul_precision='highest'"], [])
    for number, overrides in enumerate(asked):
        runner.start(specs.load(toy_spec(), [*overrides, f"run.name=r{number}", "run.steps=1"]), QUIET)
    assert seen == [("high", True, True), ("highest", False, False), before]


def test_the_seed_decides(toy_spec):
    runs = [runner.start(specs.load(toy_spec(), [f"run.seed={seed}"]), QUIET) for seed in (0, 1)]
    assert runs[0].metrics() != runs[1].metrics()
    problems = [assemble(run.spec(), report=lambda text: None) for run in runs]
    assert items(problems[0]).seeds == items(problems[1]).seeds


def test_a_crash_in_any_step_changes_nothing(toy_spec, monkeypatch):
    whole = runner.start(specs.load(toy_spec()), QUIET)
    step = type(runner.restore(whole.path, display=QUIET)[2]).step
    for crash_at in range(4):

        def dying(self, index, crash_at=crash_at):
            if index == crash_at:
                raise RuntimeError("power cut")
            return step(self, index)

        spec = specs.load(toy_spec(), [f"run.name=crash{crash_at}"])
        with monkeypatch.context() as patch:
            patch.setattr("t2ialign.testing.toy.RandomSearch.step", dying)
            with pytest.raises(PartError, match="power cut"):
                runner.start(spec, QUIET)
        crashed = whole.path.parent / f"crash{crash_at}"
        assert delivered(runner.resume(crashed, QUIET).path) == delivered(whole.path)


CHILD = """
import pathlib, sys, time
from t2ialign.run import runner
from t2ialign.spec import parse
from t2ialign.testing import installed, toy
slow = toy.RandomSearch.step
def step(self, index):
    time.sleep(600 if index >= int(sys.argv[3]) else 0.05)
    return slow(self, index)
toy.RandomSearch.step = step
path = pathlib.Path(sys.argv[2])
with installed():
    runner.start(parse.load(path)) if sys.argv[1] == "run" else runner.resume(path)
"""


def child(command: str, path: Path, until: int = 1000) -> subprocess.Popen[bytes]:
    """A process that runs or resumes, and waits to be killed before step ``until``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", CHILD, command, str(path), str(until)]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_kill_nine_at_random_moments(toy_spec):
    """The process is killed again and again until one attempt gets through; nothing shows in the result."""
    path = toy_spec(run={"steps": 20, "out": str(toy_spec().parent / "runs"), "checkpoint_every": 3, "name": "whole"})
    whole = runner.start(specs.load(path), QUIET)
    path.write_text(path.read_text().replace('name = "whole"', 'name = "killed"'))
    victim = whole.path.parent / "killed"
    moments = random.Random(7)
    process, kills = child("run", path, until=19), 0
    while process.poll() is None:
        if kills < 3 and (victim / "metrics.jsonl").exists():
            time.sleep(moments.uniform(0.05, 0.6))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = child("resume", victim, until=19 if kills < 3 else 1000)
            time.sleep(moments.uniform(1.0, 4.0))
        time.sleep(0.02)
    assert process.returncode == 0, process.stderr and process.stderr.read().decode()
    assert kills == 3
    assert delivered(victim) == delivered(whole.path)


@pytest.mark.slow
def test_one_interrupt_finishes_the_step_writes_a_checkpoint_and_says_how_to_go_on(toy_spec):
    path = toy_spec(run={"steps": 200, "out": str(toy_spec().parent / "runs"), "checkpoint_every": 100, "name": "r"})
    run = path.parent / "runs" / "r"
    process = child("run", path)
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 2:  # step 0 and 1
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"continue with: t2ialign resume" in errors
    steps = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-{steps:06d}"]


def test_the_micro_batch_changes_no_result(toy_spec):
    scores = []
    for size in (1, 3, 64):
        run = runner.start(specs.load(toy_spec(), [f"run.micro_batch={size}"]), QUIET)
        scores.append(load_file(run.path / "export" / "pytorch_lora_weights.safetensors"))
    for other in scores[1:]:
        assert all(torch.allclose(scores[0][name], other[name], atol=1e-6) for name in other)


def test_rewards_that_compare_the_images_of_a_prompt_see_them_all(toy_spec):
    """Whatever the micro-batch; and optimizers, which look at single images, go on without them."""
    summaries = []
    for micro_batch in (64, 4):
        path = toy_spec(
            run={"steps": 2, "out": str(toy_spec().parent / f"runs{micro_batch}"), "micro_batch": micro_batch},
            reward=[{"kind": "toy-redness"}, {"kind": "toy-variety", "weight": 0.0}],
            evaluation={"images_per_prompt": 3, "every": 1},
        )
        run = runner.start(specs.load(path), QUIET)
        summaries.append(json.loads((run.path / "evaluation" / "summary.json").read_text()))
        assert all(line["evaluation/toy-variety"] > 0 for line in run.history())
    whole, parts = (summary["variants"]["tuned"]["toy-variety"] for summary in summaries)
    assert whole["mean"] == pytest.approx(parts["mean"], rel=1e-5)
    assert 0 < whole["mean"] < 1


def test_a_nan_reward_stops_the_run_and_saves_the_image(toy_spec):
    spec = specs.load(toy_spec(reward=[{"kind": "toy-redness"}, {"kind": "toy-broken", "weight": 0.0}]))
    with pytest.raises(RewardError, match="'toy-broken' is nan for prompt 'blue'"):
        runner.start(spec, QUIET)
    assert (Path(spec.run.out) / "spec" / "nonfinite.png").exists()


def test_export_has_the_scale_folded_in_and_alpha_equal_to_rank(toy_spec, tmp_path):
    lora = {"rank": 2, "alpha": 8.0}
    backend = {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32", "lora": lora}
    _, problem, optimizer = runner.restore(runner.start(specs.load(toy_spec(backend=backend)), QUIET).path, None, QUIET)
    optimizer.export(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    own = problem.adapter.parameters()
    assert torch.allclose(saved["transformer.0.lora_B.weight"], 4 * own["0.lora_B.weight"])
    assert torch.equal(saved["transformer.0.lora_A.weight"], own["0.lora_A.weight"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model: "some/model"' in card


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no run directory: it has no spec\.toml"):
        runner.resume(tmp_path, QUIET)


def test_activation_start_gives_hidden_rms_one_and_keeps_the_base(toy_spec):
    lora = {"rank": 2, "init": "activations"}
    backend = {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32", "lora": lora}
    problem = assemble(specs.load(toy_spec(backend=backend)), report=lambda text: None)
    seen = []
    layer = problem.adapter.layers["0"]
    handle = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    rows = [0, 1, 2, 3, 4] * 40
    problem.adapter.start_from_activations(lambda: problem.generate(problem.conditioning[rows], list(range(200))))
    handle.remove()
    hidden = torch.cat(seen) @ problem.adapter.parameters()["0.lora_A.weight"].T
    assert hidden.square().mean(0).sqrt().tolist() == pytest.approx([1, 1], rel=1e-4)
    tuned = problem.generate(problem.conditioning, list(range(5)))
    with problem.base():
        assert torch.equal(problem.generate(problem.conditioning, list(range(5))), tuned)


def test_a_lora_target_that_matches_nothing_is_named_and_nothing_is_left_behind(toy_spec):
    backend = {"kind": "toy-model", "checkpoint": "a/b", "dtype": "float32", "lora": {"rank": 2, "targets": ["to_q"]}}
    spec = specs.load(toy_spec(backend=backend))
    with pytest.raises(UsageError, match="'to_q' matches no module"):
        runner.start(spec, QUIET)
    assert not list(Path(spec.run.out).iterdir())
