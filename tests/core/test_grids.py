"""Grids carry numbers, and the prompts stand beside them as text: any script and any length can be read."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.storage import images

PROMPTS = ["一个红色的圆形在蓝色方块的左边", "красный круг", "a 😀 emoji", "superlongwordwithoutanyspaces" * 4]


def test_a_column_is_marked_inside_its_own_width():
    row = torch.full((4, 3, 96, 96), 0.5)
    picture = np.asarray(images.grid([row, row], ["base", "tuned by a long name"]).convert("L"))
    marks = picture[-14:] < 128
    starts = [picture.shape[1] - 4 - (4 - column) * 100 + 4 for column in range(4)]
    for start, end in zip(starts, [*starts[1:], picture.shape[1]], strict=True):
        inked = np.flatnonzero(marks[:, start:end].any(0))
        assert inked.size
        assert inked.max() < 20
    assert (picture[4:100, starts[0] : starts[0] + 96] == 128).all()  # no title runs into an image


def test_sample_writes_the_prompts_of_its_grid_as_text(toy_spec, tmp_path):
    arguments = [word for prompt in PROMPTS for word in ("-p", prompt)]
    done = CliRunner().invoke(app, ["sample", str(toy_spec()), *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    legend = (tmp_path / "out/grid.txt").read_text(encoding="utf-8")
    assert legend.splitlines() == [f"{place}. {prompt}" for place, prompt in enumerate(PROMPTS, 1)]
    assert Image.open(tmp_path / "out/grid.png").text["prompts"] == legend
