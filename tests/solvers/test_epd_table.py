"""Solver tables: files, and what they mean to the sampler."""

from __future__ import annotations

import json

import pytest
import torch

from t2ialign import Denoiser, Prediction, UsageError, seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath
from t2ialign_solvers.config import Dpm2Config, EpdConfig
from t2ialign_solvers.epd import Epd
from t2ialign_solvers.single_step import Dpm2
from t2ialign_solvers.starts import arithmetic_table, levers, symmetric_table
from t2ialign_solvers.table import SolverTable, load_table

SHAPE = (2, 2, 2)


class Curved(Denoiser):
    """A denoiser that differs from row to row, and counts network calls."""

    def __init__(self, tilt):
        super().__init__(FlowPath(), Conditioning(("?",) * len(tilt), {"tilt": tilt}))
        self.calls: list[int] = []

    def rows(self, index):
        other = Curved(self.conditioning[index].tensors["tilt"])
        other.calls = self.calls
        return other

    def predict(self, x, t):
        self.calls.append(len(x))
        t = t.view(-1, 1, 1, 1)
        x0 = torch.sin(x + self.conditioning.tensors["tilt"].view(-1, 1, 1, 1) + t)
        return Prediction(x0, (x - (1 - t) * x0) / t)


def random_table(*leading, steps=4, points=3):
    generator = seeding.generator(0)
    draw = torch.rand(*leading, steps, points, generator=generator)
    weights = torch.rand(*leading, steps, points, generator=generator)
    ones = torch.ones_like(draw)
    return SolverTable(
        0.1 + 0.8 * draw.sort(-1).values,
        weights / weights.sum(-1, keepdim=True),
        ones + 0.05 * draw,
        ones - 0.05 * draw,
        schedule="polynomial",
        rho=5.0,
        info={"source": "random"},
    )


def sample(table=None, tilt=(0.0, 0.5), rows=(0, 1), **options):
    sampler = Epd(EpdConfig(**options))
    if table is not None:
        sampler.table = table
    denoiser = Curved(torch.tensor(tilt))
    return sampler.sample(denoiser, seeding.normal(rows, SHAPE)), denoiser


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_file_round_trip(tmp_path, suffix):
    table, file = random_table(), str(tmp_path / f"table.{suffix}")
    table.save(tmp_path / f"table.{suffix}")
    loaded = load_table(file)
    assert torch.equal(loaded.positions, table.positions)
    assert torch.equal(loaded.scale_time, table.scale_time)
    assert (loaded.schedule, loaded.rho, loaded.info) == ("polynomial", 5.0, {"source": "random"})
    config = EpdConfig(table=file, steps=99, points=9)
    assert config.evaluations() == (1 + 3) * 4
    expected, _ = sample(table)
    denoiser = Curved(torch.tensor([0.0, 0.5]))
    assert torch.equal(Epd(config).sample(denoiser, seeding.normal([0, 1], SHAPE)), expected)
    assert denoiser.evaluations == config.evaluations()


def test_probes_are_one_call_and_chunks_change_nothing():
    together, denoiser = sample(random_table())
    assert denoiser.calls == [2, 6] * 4
    apart, denoiser = sample(random_table(), probes_per_call=1)
    assert denoiser.calls == [2, 2, 2, 2] * 4
    assert torch.allclose(together, apart, atol=1e-6)


def test_a_table_per_image_is_each_images_own_table():
    tables = random_table(2)
    both, _ = sample(tables)
    for row in (0, 1):
        own = SolverTable(
            *(getattr(tables, name)[row] for name in ("positions", "weights", "scale_dir", "scale_time")),
            schedule="polynomial",
            rho=5.0,
        )
        alone, _ = sample(own, tilt=(0.5 * row,), rows=(row,))
        assert torch.allclose(both[[row]], alone, atol=1e-6)


def test_one_probe_in_the_middle_is_dpm2():
    options = {"schedule": "logsnr", "to_zero": False}
    epd, _ = sample(symmetric_table(5, 1, "logsnr"), steps=5)
    dpm2 = Dpm2(Dpm2Config(steps=5, **options)).sample(Curved(torch.tensor([0.0, 0.5])), seeding.normal([0, 1], SHAPE))
    assert torch.allclose(epd, dpm2, atol=1e-6)


def test_start_table():
    table = symmetric_table(3, 2)
    assert torch.allclose(table.positions, torch.tensor([0.335, 0.665]).expand(3, 2))
    assert torch.allclose(symmetric_table(1, 3).positions, torch.tensor([[0.17, 0.5, 0.83]]))
    many = symmetric_table(2, 8).positions
    assert ((many > 0) & (many < 1)).all()
    assert (many.diff(dim=-1) > 0.1).all()


def test_the_arithmetic_start_is_second_order_everywhere():
    knots = torch.tensor([14.6, 1.0, 0.34, 0.03])
    for points in (1, 2, 3):
        table = arithmetic_table(knots, points)
        assert torch.allclose(levers(table, knots), torch.full((3,), 0.5), atol=1e-5)
    thirds = knots[2] + (knots[3] - knots[2]) * torch.tensor([1, 2]) / 3
    r = arithmetic_table(knots, 2).positions[2]
    assert torch.allclose(knots[2] ** (1 - r) * knots[3] ** r, thirds, atol=1e-5)
    assert levers(symmetric_table(3, 2), knots)[2] > 0.7  # the published start is far from it where ratios are large


@pytest.mark.parametrize("options", [{}, {"to_zero": True}, {"schedule": "logsnr"}, {"schedule": "native"}])
def test_every_row_of_a_table_is_used(options):
    """A native grid has its step to zero beside them."""
    config = EpdConfig(steps=4, start="arithmetic", **options)
    _, denoiser = sample(**config.model_dump())
    last = options != {"schedule": "logsnr"}
    assert denoiser.evaluations == config.evaluations() == 12 + last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is not"),
        ({"weights": [[0.5, 0.6]]}, "must sum to 1"),
        ({"positions": [[0.5, 1.0]]}, "inside"),
        ({"scale_dir": [[1.0]]}, "share one shape"),
        ({"weights": None}, "no solver table"),
    ],
)
def test_a_bad_table_is_one_clear_error(tmp_path, change, message):
    path = tmp_path / "table.json"
    symmetric_table(1, 2).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=message):
        load_table(str(path))


def test_a_missing_table_is_one_clear_error():
    with pytest.raises(UsageError, match="no such file"):
        load_table("nowhere.json")
