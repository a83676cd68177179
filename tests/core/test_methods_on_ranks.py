"""Every method on two processes: the metrics, the evaluation and the export of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import t2ialign
import t2ialign_dav.plugin
import t2ialign_eggroll.plugin
import t2ialign_ppo.plugin
import t2ialign_reno.plugin
import t2ialign_rl.plugin
import t2ialign_search.plugin
import t2ialign_shapes.plugin
import t2ialign_solvers.plugin
import t2ialign_var.plugin
from t2ialign import cli
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing import installed, toy, write_spec
from t2ialign.testing.ranks import ranks

PLUGINS = [
    t2ialign_dav.plugin,
    t2ialign_eggroll.plugin,
    t2ialign_ppo.plugin,
    t2ialign_reno.plugin,
    t2ialign_rl.plugin,
    t2ialign_search.plugin,
    t2ialign_shapes.plugin,
    t2ialign_solvers.plugin,
    t2ialign_var.plugin,
]
#: An odd number of images: two ranks share them unequally.
ODD = {"file": "prompts.txt", "per_step": 3, "images_per_prompt": 3}
FLOW = {
    "backend": {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 2}},
    "sampler": {"kind": "toy-steps", "fresh": 0.5},
    "prompts": ODD,
}
FROZEN = {"backend": {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32"}}
#: Searches: a step's images are chosen, nothing is trained.
CHOSEN = {"backend": {**FROZEN["backend"], "kind": "toy-flow"}, "prompts": {"file": "prompts.txt", "per_step": 3}}
NOISY = {**CHOSEN, "sampler": {"kind": "toy-steps", "steps": 3, "fresh": 0.7}}
VAR = "pkg:t2ialign_shapes/checkpoints/var"
METHODS = {
    "eggroll": {"optimizer": {"kind": "eggroll", "population": 6}, "prompts": ODD},
    "open-es": {"optimizer": {"kind": "open-es", "population": 6}, "prompts": ODD},
    "reno": {"optimizer": {"kind": "reno"}, **FROZEN, "sampler": {"kind": "toy-smooth"}, "prompts": ODD},
    "dav": {"optimizer": {"kind": "dav", "particles": 2}, **FLOW},
    "ppo-epd": {
        "optimizer": {"kind": "ppo-epd", "width": 16, "validate_every": 2, "validation_images": 4},
        "backend": {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32"},
        "sampler": {"kind": "epd", "steps": 3},
        "prompts": ODD,
    },
    **{
        kind: {"optimizer": {"kind": kind, "learning_rate": 1e-3}, **FLOW}
        for kind in ("nft", "awm", "online-dpo", "flow-grpo", "draft", "srpo")
    },
    "grpo-ar": {
        "optimizer": {"kind": "grpo-ar", "learning_rate": 1e-3},
        "backend": {
            "kind": "var",
            "checkpoint": VAR,
            "dtype": "float32",
            "top_k": 0,
            "top_p": 1.0,
            "lora": {"rank": 2, "targets": ["proj"]},
        },
        "sampler": None,
        "reward": [{"kind": "shapes-graded"}],
        "prompts": {"file": f"{VAR}/prompts.txt", "per_step": 1, "images_per_prompt": 3},
    },
    "dav-upstream": {
        "optimizer": {"kind": "dav-upstream", "particles": 2},
        **FLOW,
        "sampler": {"kind": "ddim", "steps": 3, "eta": 1.0, "schedule": "discrete", "to_zero": False},
    },
    "dav-search": {"optimizer": {"kind": "dav-search", "particles": 2, "value_gradient": False}, **FLOW},
    "image-select": {"optimizer": {"kind": "image-select"}, **CHOSEN},
    "fk-steering": {"optimizer": {"kind": "fk-steering", "particles": 4}, **NOISY},
    "evo-search": {
        "optimizer": {"kind": "evo-search", "population_size_schedule": [4, 3, 3], "elite_size": 2},
        **NOISY,
    },
    "zero-order": {"optimizer": {"kind": "zero-order", "neighbours": 3}, **CHOSEN, "sampler": {"kind": "toy-steps"}},
    "hyper-noise": {"optimizer": {"kind": "hyper-noise"}, "sampler": {"kind": "toy-smooth"}, "prompts": ODD},
}


class Smooth:
    """One step that gradients go through."""

    @t2ialign.hookimpl
    def t2ialign_samplers(self, register):
        register("toy-smooth", toy.ToyStep, provides={"one-step", "differentiable"})


def numbers(value) -> list[float]:
    if isinstance(value, dict):
        return [number for key in value for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, int | float) else []


def told(run: Path) -> dict[str, list[float]]:
    """All numbers of what a run delivers, by file."""
    files = [*sorted(run.glob("export/**/*.json")), run / "evaluation/summary.json"]
    found = {str(file.relative_to(run)): numbers(json.loads(file.read_text())) for file in files}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = numbers([{key: line[key] for key in sorted(line)} for line in lines])
    for file in run.glob("export/**/*.safetensors"):
        for name, tensor in load_file(file).items():
            found[f"{file.relative_to(run)} {name}"] = tensor.float().flatten().tolist()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_what_one_gives(tmp_path, method):
    run = {"steps": 2, "out": str(tmp_path / "runs")}
    evaluation = {"every": 1, "images_per_prompt": 1, "limit": 3}
    with installed(Smooth(), *PLUGINS):
        path = write_spec(tmp_path, run=run, evaluation=evaluation, samples={"count": 3}, **METHODS[method])
        one = runner.start(specs.load(path, ["run.name='one'"]), Display(quiet=True)).path

        def work(rank: int) -> None:
            sys.argv = ["t2ialign", "run", str(path), "--set", "run.name='two'"]
            cli.main()

        ended = ranks(2, work, tmp_path / "logs")
    assert ended.codes == [0, 0], ended.text
    first, second = told(one), told(one.with_name("two"))
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert second[name] == pytest.approx(values, rel=1e-3, abs=1e-4), name
    listed = [{str(f.relative_to(r)) for f in r.rglob("*.*")} - {"log.txt"} for r in (one, one.with_name("two"))]
    assert listed[0] == listed[1]
