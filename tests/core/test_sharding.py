"""A frozen network whose weights are split over two ranks: the numbers of the whole one, and half of the weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from worlds import WORLD

import t2ialign_eggroll.plugin
import t2ialign_rl.plugin
from t2ialign import cli
from t2ialign.errors import SpecError
from t2ialign.ranks.sharding import held
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing import installed, write_spec
from t2ialign.testing.ranks import ranks

EGGROLL = {"optimizer": {"kind": "eggroll", "population": 6}}
BACKEND = {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 2}}
DRAFT = {
    "backend": BACKEND,
    "optimizer": {"kind": "draft", "last": 2},
    "sampler": {"kind": "toy-steps", "steps": 3},
}
NFT = {
    "backend": BACKEND,
    "optimizer": {"kind": "nft", "updates": 2},
    "sampler": {"kind": "toy-steps", "steps": 3},
    "prompts": {"file": "prompts.txt", "per_step": 5, "images_per_prompt": 3},
}


def telling(words: list[str], folder: Path):
    """The command line as a rank's work; the share of the network that the rank holds in the end goes into a file."""

    def work(rank: int) -> None:
        from t2ialign.run import runner

        def loaded(problem):
            optimizer = load(problem)
            problems.append(problem)
            return optimizer

        problems, load = [], runner.load_optimizer
        runner.load_optimizer = loaded
        sys.argv = ["t2ialign", *words]
        try:
            cli.main()
        finally:
            network = problems[0].backend.trainable
            factors = sum(p.numel() for p in problems[0].adapter.parameters().values())
            whole = sum(p.numel() for p in network.parameters())
            share = (held(network) - factors) / (whole - factors)
            (folder / f"share{rank}.txt").write_text(str(share))

    return work


def shares(folder: Path) -> list[float]:
    return [float(file.read_text()) for file in sorted(folder.glob("share*.txt"))]


@pytest.mark.parametrize("tables", [EGGROLL, DRAFT, NFT], ids=["eggroll", "draft", "nft"])
def test_a_sharded_run_gives_the_numbers_of_a_whole_one(tmp_path, tables):
    """Five prompts and six members on two ranks; eleven rows of a micro-batch of four: nothing divides evenly."""
    run = {"steps": 3, "out": str(tmp_path / "runs"), "micro_batch": 4}
    kinds = {"one": "none", "two": "none", "sharded": "fsdp"}
    weights, share = {}, {}
    with installed(t2ialign_eggroll.plugin, t2ialign_rl.plugin):
        path = write_spec(tmp_path, run=run, evaluation={"every": 1}, **tables)
        for name, shard in kinds.items():
            words = ["run", str(path), "--set", f"run.name='{name}'", "--set", f"backend.shard='{shard}'"]
            ended = ranks(1 if name == "one" else 2, telling(words, tmp_path), tmp_path / "logs")
            assert not any(ended.codes), ended.text
            weights[name] = load_file(tmp_path / "runs" / name / "export/pytorch_lora_weights.safetensors")
            share[name] = shares(tmp_path)
            assert "every tensor loads" in (tmp_path / "runs" / name / "export/README.md").read_text()
    for name in ("two", "sharded"):
        for key, tensor in weights["one"].items():
            assert tensor.numpy() == pytest.approx(weights[name][key].numpy(), abs=2e-5), (name, key)
    assert share["two"] == [1, 1]
    assert share["sharded"] == pytest.approx([0.5, 0.5], rel=0.02)
    last = [json.loads((tmp_path / "runs" / n / "metrics.jsonl").read_text().splitlines()[-1]) for n in kinds]
    assert last[0] == pytest.approx(last[1], abs=1e-4)
    assert last[0] == pytest.approx(last[2], abs=1e-4)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"optimizer": {"kind": "eggroll", "population": 6, "parameters": "weights"}}, "leave shard out"),
        ({"export": {"formats": ["fused"]}}, "'fused' is no form"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_anything_loads(tmp_path, tables, says):
    with installed(t2ialign_eggroll.plugin):
        backend = {"kind": "toy-model", "checkpoint": "some/model", "shard": "fsdp"}
        path = write_spec(tmp_path, **{"backend": backend, **EGGROLL, **tables})
        with pytest.raises(SpecError, match=says):
            specs.load(path)


def test_a_real_transformer_is_sharded_block_by_block(tmp_path):
    """The smallest run on the shapes world, whose LoRA the check loads by diffusers' own loader."""
    path = tmp_path / "spec.toml"
    path.write_text(WORLD.replace("OUT", str(tmp_path / "runs")) + "[evaluation]\nlimit = 3\n")
    runner.start(specs.load(path, ["run.name='whole'"]), Display(quiet=True))
    words = ["run", str(path), "--set", "run.name='sharded'", "--set", "backend.shard='fsdp'"]
    ended = ranks(2, telling(words, tmp_path), tmp_path / "logs", limit=240)
    assert not any(ended.codes), ended.text
    whole, sharded = (
        load_file(tmp_path / "runs" / name / "export/pytorch_lora_weights.safetensors") for name in ("whole", "sharded")
    )
    assert all(whole[name].numpy() == pytest.approx(sharded[name].numpy(), abs=1e-4) for name in whole)
    assert shares(tmp_path) == pytest.approx([0.5, 0.5], abs=0.03)
