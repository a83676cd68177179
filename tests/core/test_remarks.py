"""What has no effect, or less than it says, is told before the work, in the same words by every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from t2ialign.bench import variants
from t2ialign.cli import app
from t2ialign.cli.studies import bench
from t2ialign.remarks.collect import all_prompts, remarks
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs

LONG = " ".join(["a red circle left of a blue square,"] * 14)


def told(path) -> list[str]:
    spec = specs.load(Path(path))
    return remarks(spec, all_prompts(spec))


#: (tables, words of the remark); each pair of settings stands in docs/messages.md.
PAIRS = {
    "checkpoints": ({"run": {"steps": 4, "checkpoint_every": 9}}, "run.checkpoint_every = 9"),
    "micro-batch": (
        {"run": {"steps": 4, "micro_batch": 400}},
        "run.micro_batch = 400: a step and an evaluation have fewer images",
    ),
    "grids": ({"samples": {"every": 70}}, "samples.every = 70"),
    "limit": ({"evaluation": {"limit": 999}}, "evaluation.limit = 999: there are fewer prompts"),
    "column": ({"evaluation": {"column": "prompt"}}, "evaluation.column = 'prompt'"),
    "many images": (
        {"prompts": {"file": "prompts.txt", "per_step": 2, "images_per_prompt": 90_000}},
        "images per step = 180,000: at ten a second a step takes 5.0 hours",
    ),
    "shown": ({"samples": {"count": 60}}, "samples.count = 60: there are"),
    "init prompts": (
        {"backend": {"kind": "toy-model", "checkpoint": "some/model", "lora": {"init_prompts": 5}}},
        "backend.lora.init_prompts = 5",
    ),
    "range": (
        {"reward": [{"kind": "toy-redness", "range": [0.0, 1.0]}]},
        "reward 'toy-redness': range = [0.0, 1.0]: only normalise = 'range' reads it",
    ),
    "held out": (
        {"reward": [{"kind": "toy-redness"}, {"kind": "toy-redness", "name": "b", "weight": 0.0, "normalise": "rank"}]},
        "reward 'b': normalise = 'rank': plays no part",
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_setting_without_effect_is_named(toy_spec, pair):
    tables, words = PAIRS[pair]
    if "run" in tables:
        tables = tables | {"run": {"out": str(toy_spec().parent / "runs"), **tables["run"]}}
    (found,) = told(toy_spec(**tables))
    assert words in found


def test_defaults_and_settings_that_count_are_not_remarked_on(toy_spec):
    assert told(toy_spec()) == []
    assert told(toy_spec(run={"steps": 40, "micro_batch": 8, "checkpoint_every": 20})) == []


def toml(value) -> str:
    inner = ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) if isinstance(value, dict) else ""
    return f"{{{inner}}}" if inner else json.dumps(value)


def guided(folder, **backend) -> str:
    (folder / "prompts.txt").write_text(f"{LONG} one\n{LONG} two\na red circle\n", encoding="utf-8")
    options = {"kind": "sd15", "checkpoint": "pkg:t2ialign_shapes/checkpoints/sd", "guidance_scale": 1.0, **backend}
    lines = "\n".join(f"{key} = {toml(value)}" for key, value in options.items())
    (folder / "spec.toml").write_text(
        f"""
[run]
steps = 1
device = "cpu"
out = "{(folder / "runs").as_posix()}"
[backend]
{lines}
[sampler]
kind = "ddim"
steps = 2
[optimizer]
kind = "eggroll"
population = 2
[[reward]]
kind = "clipscore"
model = "pkg:t2ialign_shapes/checkpoints/clip"
[prompts]
file = "prompts.txt"
""",
        encoding="utf-8",
    )
    return str(folder / "spec.toml")


def test_prompts_that_are_cut_are_told_by_every_command_alike(tmp_path):
    spec = guided(tmp_path)
    invoke = CliRunner().invoke
    shown = invoke(app, ["validate", spec]).output
    notes = [line for line in shown.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert "note: backend: the text encoder reads 16 tokens of a prompt: 2 of 3 prompts are cut" in notes[0]
    assert "reward 'clipscore': the model reads 16 tokens" in notes[1]
    assert notes[0].rsplit("before '", 1)[1].rstrip("…'") in LONG
    code = "import sys; from t2ialign.cli import main; sys.argv = ['t2ialign', 'validate', sys.argv[1]]; "
    code += "import contextlib\nwith contextlib.suppress(SystemExit): main()\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code, spec], capture_output=True, check=False).returncode == 0
    drawn = invoke(app, ["sample", spec, "--out", str(tmp_path / "out")])
    assert notes[0] in drawn.output
    reward = 'clipscore={model = "pkg:t2ialign_shapes/checkpoints/clip"}'
    images = [str(tmp_path / "out"), "--pattern", "0*.png"]
    scored = invoke(app, ["score", *images, "--prompts", str(tmp_path / "prompts.txt"), "-r", reward])
    assert notes[1] in scored.output
    run = runner.start(specs.load(tmp_path / "spec.toml"), Display(quiet=True))
    assert [f"note: {remark}" for remark in run.remarks()] == notes
    assert notes[0].removeprefix("note: ") in (run.path / "export/README.md").read_text(encoding="utf-8")


def test_a_bench_prints_the_notes_of_the_other_commands(tmp_path):
    spec = guided(tmp_path, vae_tiling=True)
    planned = variants.plan([spec], [], {}, False)
    loaded = planned[0].spec
    found = bench.notes(planned, loaded.rewards, {"": loaded.training_prompts()})
    assert found == [line for line in told(spec) if not line.startswith("run.")]
    assert len(found) == 3


def test_targets_that_no_layer_has_are_told_by_validate(tmp_path):
    spec = guided(tmp_path, lora={"targets": ["to_q"]})
    assert CliRunner().invoke(app, ["validate", spec]).exit_code == 0
    words = ["validate", spec, "--set", 'backend.lora.targets=["to_q", "nonsense"]']
    assert "no layer of the network is called 'nonsense'" in str(CliRunner().invoke(app, words).exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negative_prompt": "grey"}, "backend.negative_prompt = 'grey': guidance_scale switches guidance off"),
        ({"negative_prompt": "grey", "guidance_scale": 4.0}, ""),
    ],
)
def test_a_negative_prompt_needs_guidance(tmp_path, options, words):
    found = [remark for remark in told(guided(tmp_path, **options)) if "negative" in remark]
    assert len(found) == bool(words)
    assert words in "".join(found)
