"""Published tables: all of them load and sample, and a file that brings code is refused before anything runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Dirichlet

from t2ialign import Denoiser, Prediction, UsageError, seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath, VPPath
from t2ialign_ppo.convert_snapshot import main, published_mapping, read_table
from t2ialign_ppo.distributions import LogNormalScales, TableDistribution
from t2ialign_solvers.config import EpdConfig
from t2ialign_solvers.epd import Epd
from t2ialign_solvers.table import load_table

FOLDER = Path(__file__).parents[1] / "golden"
TABLES = json.loads((FOLDER / "epd_tables.json").read_text())["tables"]
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


def stored(name):
    """The parameters and settings of a published table, as its file has them."""
    entry = TABLES[name]
    settings = {k: v for k, v in entry["metadata"].items() if not k.endswith("_range")}
    settings |= {f"scale_{which}": entry["metadata"][f"scale_{which}_range"] for which in ("dir", "time")}
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in entry["raw"].items()}, settings


class Blur(Denoiser):
    """Every image is grey: x0 = x / 2."""

    def rows(self, index):
        return Blur(self.path, self.conditioning[index])

    def predict(self, x, t):
        alpha, sigma = (v.view(-1, 1, 1) for v in self.path.coefficients(t))
        return Prediction(x / 2, (x - alpha * x / 2) / sigma)


@pytest.mark.parametrize("name", TABLES)
def test_every_published_table_loads_and_samples(name, tmp_path):
    table, entry = published_mapping(*stored(name)), TABLES[name]
    for found, part in ((table.positions, "positions"), (table.weights, "weights"), (table.scale_dir, "scale_dir")):
        torch.testing.assert_close(found, torch.tensor(entry[part]), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(table.scale_time, torch.tensor(entry["scale_time"]), rtol=2e-6, atol=2e-6)
    assert (table.steps, table.points) == (entry["num_steps"] - 1, entry["num_points"])
    table.save(tmp_path / "table.json")
    assert torch.equal(load_table(str(tmp_path / "table.json")).positions, table.positions)
    path = FlowPath(3.0) if table.schedule == "flowmatch" else VPPath((1 - BETAS).cumprod(0))
    denoiser = Blur(path, Conditioning(("?",), {}))
    image = Epd(EpdConfig(table=str(tmp_path / "table.json"))).sample(denoiser, seeding.normal([0], (2, 2)))
    assert image.isfinite().all()
    assert denoiser.evaluations == 3 * table.steps


def test_a_published_export_is_not_the_policy_that_was_trained():
    """Its scales left the range to which the export cuts them; positions and weights are the policy's mean."""
    trained = {
        k: torch.tensor(v, dtype=torch.float64) for k, v in TABLES["sd15-scales-step9000"]["policy_mean"].items()
    }
    scales = (LogNormalScales(trained[f"{n}_loc"], trained[f"{n}_std"].log()) for n in ("scale_dir", "scale_time"))
    mean = TableDistribution(Dirichlet(trained["alpha_pos"]), Dirichlet(trained["alpha_weight"]), *scales).mean
    exported = published_mapping(*stored("sd15-scales-step9000"))
    close = {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(mean.segments[:, :-1].cumsum(-1).float(), exported.positions, **close)
    torch.testing.assert_close(mean.weights.float(), exported.weights, **close)
    for name in ("scale_dir", "scale_time"):
        torch.testing.assert_close(getattr(mean, name), trained[name], **close)
        cut = trained[name].float().clamp(0.95, 1.05)
        torch.testing.assert_close(getattr(exported, name), cut, **close)
    assert ((mean.scale_dir - 1).abs() > 0.05).sum() + ((mean.scale_time - 1).abs() > 0.05).sum() == 35


class Persistent:
    """Pickles as the published classes do: a reconstructor of theirs, source text, and the module's attributes."""

    def __init__(self, parameters, settings, marker):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": f"open({str(marker)!r}, 'w')",
            "class_name": "EPD_predictor",
            "state": {
                "_parameters": {name: torch.nn.Parameter(value) for name, value in parameters.items()},
                "_modules": {"sigmoid": torch.nn.Sigmoid(), "softmax": torch.nn.Softmax(-1)},
                **settings,
            },
        }

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file as upstream writes it, and the marker that its source text would leave."""

    def _reconstruct_persistent_obj(meta):
        exec(meta["module_src"])

    holder = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = holder.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    holder._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", holder)
    marker, file = tmp_path / "ran", tmp_path / "network-snapshot-000005.pkl"
    file.write_bytes(pickle.dumps({"model": Persistent(*stored("sd15-scales-step9000"), marker)}))
    return file, marker


def test_a_published_file_becomes_a_table_and_none_of_it_runs(published, tmp_path, capsys):
    file, marker = published
    for name in ("table.json", "table.safetensors"):
        main([str(file), str(tmp_path / name)])
        table = load_table(str(tmp_path / name))
        expected = torch.tensor(TABLES["sd15-scales-step9000"]["scale_dir"])
        torch.testing.assert_close(table.scale_dir, expected, rtol=1e-6, atol=1e-6)
        assert (table.schedule, table.rho) == ("discrete", 1.0)
        assert table.info["guidance_rate"] == 7.5
    assert not marker.exists()
    assert "10 intervals, 2 probes" in capsys.readouterr().out


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["top", "inside", "storage"])
@pytest.mark.parametrize(("function", "name"), [(os.system, "system"), (eval, "eval"), (torch.load, "load")])
def test_a_foreign_name_is_refused_and_not_run(published, tmp_path, place, function, name):
    file, marker = published
    command = {"eval": f"open({str(marker)!r}, 'w')"}.get(name, f"touch {marker}")
    attack = Attack(function, command)
    if place == "storage":  # a second pickle, in the bytes of a tensor
        inner = pickle.dumps(attack)
        attack = Attack(torch.storage._load_from_bytes, inner)
    parameters, settings = stored("sd15-best")
    content = {"model": Persistent(parameters, settings | {"extra": attack}, marker) if place == "inside" else attack}
    file.write_bytes(pickle.dumps(content))
    message = "cannot be read" if place == "storage" else rf"names '[\w.]+\.{name}'.*nothing was run"
    with pytest.raises(UsageError, match=message):
        read_table(file)
    assert not marker.exists()


@pytest.fixture
def arrays():
    """What the published loader reads of a .npz: values in place of raw parameters, and scalar settings."""
    entry = TABLES["sd15-scales-step9000"]
    names = {"r": "positions", "weight": "weights", "scale_dir": "scale_dir", "scale_time": "scale_time"}
    settings = {name: entry["metadata"][name] for name in ("num_steps", "num_points", "schedule_type", "schedule_rho")}
    return {name: np.array(entry[key]) for name, key in names.items()} | settings | {"guidance_rate": 7.5}


def test_a_published_array_file_becomes_the_same_table(arrays, tmp_path):
    np.savez(tmp_path / "table.npz", **arrays)
    main([str(tmp_path / "table.npz"), str(tmp_path / "table.json")])
    table, expected = load_table(str(tmp_path / "table.json")), published_mapping(*stored("sd15-scales-step9000"))
    for part in ("positions", "weights", "scale_dir", "scale_time"):
        torch.testing.assert_close(getattr(table, part), getattr(expected, part), rtol=2e-6, atol=2e-6)
    assert (table.schedule, table.rho, table.info["guidance_rate"]) == ("discrete", 1.0, 7.5)
    np.savez(tmp_path / "plain.npz", **{name: arrays[name] for name in arrays if not name.startswith("scale_")})
    assert torch.equal(read_table(tmp_path / "plain.npz").scale_time, torch.ones(10, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "KeyError: 'weight'"),
        ({"schedule_type": None}, "KeyError: 'schedule_type'"),
        ({"schedule_type": "cosine"}, "schedule 'cosine' is none of native, polynomial"),
        ({"weight": np.ones((3, 2))}, "Size does not match"),
        ({"r": np.full((10, 2), np.nan)}, "inside"),
    ],
)
def test_a_wrong_array_file_is_one_clear_error(arrays, tmp_path, change, message):
    content = {name: value for name, value in (arrays | change).items() if value is not None}
    np.savez(tmp_path / "table.npz", **content)
    with pytest.raises(UsageError, match=rf"table\.npz cannot be read as a solver table.*{message}"):
        read_table(tmp_path / "table.npz")


def test_objects_in_an_array_file_are_refused_and_not_run(arrays, tmp_path):
    marker = tmp_path / "ran"
    attack = np.array([Attack(os.system, f"touch {marker}")], dtype=object)
    np.savez(tmp_path / "table.npz", **arrays | {"extra": attack}, allow_pickle=True)
    with pytest.raises(UsageError, match="allow_pickle=False"):
        read_table(tmp_path / "table.npz")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"model": 1}), pickle.dumps([])])
@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_other_files_are_one_clear_error(tmp_path, content, suffix):
    file = tmp_path / f"other.{suffix}"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as a solver table"):
        read_table(file)
    with pytest.raises(UsageError, match="No such file"):
        read_table(tmp_path / f"nowhere.{suffix}")


def test_another_class_is_refused(published):
    file, _ = published
    content = io.BytesIO(file.read_bytes().replace(b"EPD_predictor", b"XYZ_predictor"))
    file.write_bytes(content.getvalue())
    with pytest.raises(UsageError, match="'XYZ_predictor' and no 'EPD_predictor'"):
        read_table(file)
