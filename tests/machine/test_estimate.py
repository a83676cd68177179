"""``estimate``: sizes that can be counted by hand, configurations without weights, and what makes a spec fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from worlds import WORLD

from t2ialign import checkpoints
from t2ialign.cli import app
from t2ialign.errors import UsageError
from t2ialign.estimate.advice import fits, memory_size, to_fit
from t2ialign.estimate.estimate import estimate
from t2ialign.estimate.scaling import BANDWIDTH, LATENCY, Scaling
from t2ialign.estimate.tally import tallied
from t2ialign.spec import parse as specs

DRAFT = Path(__file__).parents[2] / "specs" / "draft-shapes.toml"

SHAPES = checkpoints.resolve("pkg:t2ialign_shapes/checkpoints/sprint-washed")


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_tally_counts_what_lives_at_once_and_every_operation(device):
    first, second = nn.Linear(8, 32, bias=False, device=device), nn.Linear(32, 4, bias=False, device=device)
    images = torch.ones(10, 8, device=device)
    with torch.no_grad(), tallied() as tally:
        result = second(first(images).relu())
    assert result.shape == (10, 4)
    assert tally.peak == 10 * (32 + 32) * 4  # the result of the first layer beside that of relu
    assert tally.live == 10 * 4 * 4
    assert tally.operations == 2 * 10 * (8 * 32 + 32 * 4)


def test_a_tally_counts_what_a_backward_pass_keeps():
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(5))).to("meta")
    images = torch.ones(10, 16, device="meta")
    with tallied() as without, torch.no_grad():
        layers(images)
    assert without.peak == 3 * 10 * 16 * 4  # a block's input, and what is between its layers
    with tallied() as kept:
        total = layers(images).sum()
        assert kept.live >= 5 * 10 * 16 * 4  # what every tanh gave
        total.backward()
    assert kept.peak > 5 * (16 * 16 + 16) * 4  # the gradients of all weights
    assert kept.live < kept.peak


def test_attention_without_values_makes_no_matrix_of_all_pairs():
    query = torch.empty(1, 2, 4096, 64, device="meta")
    with tallied() as tally, torch.no_grad():
        result = nn.functional.scaled_dot_product_attention(query, query, query)
    assert result.shape == query.shape
    assert tally.peak < 3 * query.nbytes
    assert tally.operations == 4 * 2 * 4096 * 4096 * 64


def world(folder: Path, checkpoint: Path | None = None, **tables: str) -> Path:
    """The smallest spec of the shapes world, on another checkpoint."""
    path = folder / "spec.toml"
    text = WORLD.replace("OUT", str(folder / "runs"))
    path.write_text(
        text.replace("pkg:t2ialign_shapes/checkpoints/sprint-washed", str(checkpoint)) if checkpoint else text
    )
    return path


@pytest.fixture
def without_weights(tmp_path):
    """The configurations of the shapes model alone."""
    folder = tmp_path / "model"
    shutil.copytree(SHAPES, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    assert not list(folder.rglob("*.safetensors"))
    return folder


def test_configurations_are_enough_and_weights_are_counted_to_the_byte(tmp_path, without_weights):
    found = estimate(specs.load(world(tmp_path, without_weights)), on_cpu=False)
    shapes = checkpoints.tensor_shapes(SHAPES / "transformer")
    assert found.memory["network"] == pytest.approx(
        4 * sum(torch.Size(shape).numel() for shape in shapes.values()), rel=0.01
    )
    assert found.text > 0
    assert found.unknown == []
    assert found.peak == max(found.text, sum(found.memory.values()))
    (tmp_path / "with").mkdir()
    whole = estimate(specs.load(world(tmp_path / "with")), on_cpu=False)
    assert whole.passes == found.passes
    assert (whole.images, whole.network_calls, whole.decodes) == (8, 8, 8)


def test_less_is_needed_by_smaller_batches_formats_and_turns(tmp_path):
    path = world(tmp_path)

    def of(*overrides: str):
        return estimate(specs.load(path, ["optimizer.population=32", *overrides]), on_cpu=False)

    plain = of()
    assert plain.micro_batch == 64
    assert of("run.micro_batch=8").passes["network call"] == pytest.approx(plain.passes["network call"] / 8, rel=0.2)
    half = of('backend.dtype="bfloat16"')
    assert half.memory["network"] == pytest.approx(plain.memory["network"] / 2, rel=0.01)
    int8 = of('backend.dtype="bfloat16"', "backend.quantization.kind='int8'")
    assert int8.memory["network, quantised"] < 0.8 * half.memory["network"]
    turns = of('backend.offload="blocks"')
    assert sum(turns.memory.values()) < sum(plain.memory.values())


def test_what_a_backward_pass_keeps_can_be_recomputed(tmp_path):
    path = world(tmp_path)
    clip = "reward=[{kind='clipscore', model='pkg:t2ialign_shapes/checkpoints/clip'}]"
    changes = ["optimizer={kind='draft'}", clip, "prompts.images_per_prompt=4"]
    keeping = estimate(specs.load(path, changes), on_cpu=False)
    recomputing = estimate(
        specs.load(path, [*changes, "backend.gradient_checkpointing=['network', 'decoder']"]), on_cpu=False
    )
    assert keeping.passes["backward pass"] > 3 * keeping.passes["network call"]
    assert recomputing.passes["backward pass"] < keeping.passes["backward pass"]


def test_every_call_that_keeps_its_gradient_is_counted():
    """DRaFT-K goes back through K calls of the network; DRaFT-LV's are not known beforehand, and that is said."""
    found = {}
    for last in (1, 4):
        spec = specs.load(DRAFT, [f"optimizer.last={last}", "run.micro_batch=1"])
        told = estimate(spec, on_cpu=False)
        assert not told.unknown
        found[last] = told.passes["backward pass"]
    assert found[4] > 2 * found[1]
    assert specs.load(DRAFT, ["optimizer.last=1", "optimizer.noisings=2"]).optimizer_config.calls_kept(8) is None


def test_what_does_not_fit_is_told_what_to_change(tmp_path):
    path, overrides = world(tmp_path), ["optimizer.population=32"]
    plain = estimate(specs.load(path, overrides), on_cpu=False)
    memory = plain.peak // 2
    assert not fits(plain, memory)
    changes, found = to_fit(path, overrides, memory, on_cpu=False)
    assert fits(found, memory)
    assert fits(estimate(specs.load(path, [*overrides, *changes]), on_cpu=False), memory)


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 2**30), ("512 MiB", 2**29), ("1.5g", 3 * 2**29), ("100", 100)]
)
def test_sizes_are_those_of_cards(text, size):
    assert memory_size(text) == size


def test_other_sizes_are_refused():
    with pytest.raises(UsageError, match="--memory 24 apples"):
        memory_size("24 apples")


def test_workers_are_simulated_by_the_formula_that_is_told():
    made = Scaling(seconds=10.0, pieces=128, message=1000)
    assert made.at(1) == 10.0
    assert made.at(4) == pytest.approx(2.5 + 3 * LATENCY + 2 * 0.75 * 1000 / BANDWIDTH)
    assert made.at(48) == pytest.approx(10 * 3 / 128, rel=0.02)  # as 43 workers: three rounds
    assert made.at(10_000) > made.at(128)
    assert made.pays_until() == 128


def test_the_command_prints_json_and_labels_its_simulation(tmp_path):
    path = world(tmp_path)
    answer = CliRunner().invoke(app, ["estimate", str(path), "--flops", "1e12", "--json", "--memory", "8GB"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["fits"] is True
    assert found["seconds"] == pytest.approx(
        (found["steps"] * found["operations"]["step"] + found["evaluated"] * found["operations"]["image"]) / 1e12
    )
    text = CliRunner().invoke(app, ["estimate", str(path), "--flops", "1e12", "--workers"]).stdout
    assert "SIMULATION, not measured" in text
    assert "10,000" in text
