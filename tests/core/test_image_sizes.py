"""Images that are not square, from the spec to the report."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.errors import SpecError
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.sizes import height_width, off_grid
from t2ialign.spec import parse as specs
from t2ialign_diffusers.sizes import off_bucket

BACKEND = {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 2}}


def invoke(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def size(path) -> tuple[int, int]:
    """(width, height), as Pillow has it."""
    with Image.open(path) as picture:
        return picture.size


def test_a_run_of_wide_images_from_spec_to_report(toy_spec, tmp_path):
    run = {"steps": 2, "out": str(tmp_path / "runs"), "name": "wide"}
    spec = toy_spec(run=run, backend=BACKEND | {"image_size": [4, 6]}, samples={"count": 3})
    invoke("validate", spec)
    invoke("run", spec)
    folder = tmp_path / "runs" / "wide"
    assert "image_size = [\n    4,\n    6,\n]" in (folder / "spec.toml").read_text()
    for variant in ("base", "tuned"):
        assert {size(file) for file in (folder / "evaluation" / variant).glob("*.png")} == {(6, 4)}
    # The shorter side is enlarged to 96 pixels; three images and their gaps lie in a row.
    assert size(folder / "samples" / "step-000000.png")[0] == 3 * (144 + 4) + 4
    page = (folder / "report.html").read_text()
    shown = re.findall(r'width="(\d+)" height="(\d+)" alt="', page)
    assert {int(width) / int(height) for width, height in shown} == {1.5}
    with safe_open(folder / "export" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert file.metadata()["modelspec.resolution"] == "6x4"
    assert json.loads((folder / "evaluation" / "summary.json").read_text())["images"] == 5
    invoke("eval", folder)
    invoke("sample", spec, "--lora", folder / "export", "--limit", 2, "--out", tmp_path / "drawn")
    assert {size(file) for file in (tmp_path / "drawn").glob("[0-9]*.png")} == {(6, 4)}
    assert size(tmp_path / "drawn" / "grid.png")[0] == 2 * (144 + 4) + 4


def test_a_pair_of_equal_sides_is_the_square(toy_spec, tmp_path):
    found = []
    for name, sides in (("number", "4"), ("pair", "[4, 4]")):
        overrides = [f"backend.image_size={sides}", f"run.name={name}", "run.steps=1"]
        found.append(runner.start(specs.load(toy_spec(), overrides), Display(quiet=True)).metrics())
    assert found[0] == found[1]


@pytest.mark.parametrize("given", ["[4]", "[4, 6, 8]", "0", "[4, 0]", "4.0", "true", '"4x6"', "[[4, 6]]"])
def test_what_is_no_size_is_told_with_what_is_one(toy_spec, given):
    with pytest.raises(SpecError) as caught:
        specs.load(toy_spec(), [f"backend.image_size={given}"])
    (problem,) = caught.value.problems
    assert problem.key == "backend.image_size"
    assert problem.allowed == "must be a whole number of pixels for a square, or [height, width]."


def test_sides_off_the_grid_are_told_with_the_nearest():
    assert off_grid(512, 16) == off_grid([768, 512], 16) == ""
    assert off_grid([1000, 512], 16) == "height and width must be multiples of 16; nearest: [992, 512]"
    assert off_grid(3, 8) == "height and width must be multiples of 8; nearest: 8"
    assert off_grid([512, 2048], 16, 1536).endswith("multiples of 16, 1536 at most; nearest: [512, 1536]")
    assert height_width(7) == (7, 7)


@pytest.mark.parametrize(
    ("given", "side", "nearest"),
    [
        (1024, 1024, ""),
        ([832, 1216], 1024, ""),
        ([1216, 832], 1024, ""),
        ([416, 608], 512, ""),
        (512, 1024, "1024"),
        ([720, 1280], 1024, "[768, 1344]"),
        ([1280, 720], 1024, "[1344, 768]"),
        ([1024, 2048], 2048, "[1408, 2816]"),
        (96, 32, ""),  # nobody published buckets of other sizes
    ],
)
def test_a_size_off_the_buckets_is_told_with_the_nearest(given, side, nearest):
    assert off_bucket(given, side) == nearest
