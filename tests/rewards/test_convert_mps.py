"""The MPS converter reads a pickled module's tensors, and runs nothing that a pickle asks for."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from t2ialign import UsageError
from t2ialign_rewards.convert_mps import main, read_checkpoint


@pytest.fixture
def foreign_classes(monkeypatch):
    """The import paths that the released file names, gone again when it is read."""
    modules = {name: types.ModuleType(name) for name in ("trainer", "trainer.models", "trainer.models.clip_model")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    holder = modules["trainer.models.clip_model"]
    holder.CLIPModel = type("CLIPModel", (nn.Module,), {"__module__": holder.__name__})
    return holder


def nested(tensors, make):
    """A module tree whose state dict is ``tensors``."""
    root = make()
    for key, value in tensors.items():
        module = root
        *path, leaf = key.split(".")
        for name in path:
            if name not in module._modules:
                module.add_module(name, make())
            module = module._modules[name]
        if "inv_freq" in key:
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    return root


@pytest.fixture
def released(tmp_path, golden, foreign_classes, monkeypatch):
    """A file of the released kind: a whole half-precision module, old position buffers and a function included."""
    weights = {key: value.half() for key, value in golden("mps").below("weights.").items()}
    module = nested(weights, foreign_classes.CLIPModel)
    embeddings = module._modules["model"]._modules["text_model"]._modules["embeddings"]
    embeddings.register_buffer("position_ids", torch.arange(16)[None])
    module.act = nn.functional.gelu
    module.dtype = torch.float16
    file = tmp_path / "MPS_overall_checkpoint.pth"
    torch.save(module, file)
    for name in ("trainer", "trainer.models", "trainer.models.clip_model"):
        monkeypatch.delitem(sys.modules, name)
    return file, weights


def test_every_tensor_arrives(released, tmp_path, capsys):
    file, weights = released
    output = tmp_path / "MPS_overall.safetensors"
    main([str(file), str(output)])
    converted = load_file(output)
    assert converted.keys() == weights.keys()
    assert all(converted[key].equal(weights[key]) for key in weights)
    assert f"{len(weights)} tensors" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {file.name, output.name}


def archive(path, payload):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", payload)
    return path


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (subprocess.Popen, "Popen"), (getattr, "getattr"), (torch.load, "load")],
)
def test_foreign_names_are_refused_and_not_run(tmp_path, function, name):
    marker = tmp_path / "ran"
    arguments = {"eval": (f"open({str(marker)!r}, 'w')",), "Popen": (["touch", str(marker)],)}
    attack = Attack(function, *arguments.get(name, (f"touch {marker}",)))
    file = archive(tmp_path / "attack.pth", pickle.dumps({"model": attack}, protocol=2))
    with pytest.raises(UsageError, match=rf"names '[\w.]+\.{name}'.*nothing was run"):
        read_checkpoint(file)
    assert not marker.exists()


def test_allowed_names_stay_empty_shells(tmp_path, foreign_classes, monkeypatch):
    """Even a class of an allowed module is never imported: its constructor cannot run."""
    marker = tmp_path / "ran"
    foreign_classes.CLIPModel = type(
        "CLIPModel", (), {"__module__": foreign_classes.__name__, "__init__": lambda self, path: path.touch()}
    )
    payload = pickle.dumps(Attack(foreign_classes.CLIPModel, str(marker)), protocol=2)
    with pytest.raises(UsageError, match="missing"):
        read_checkpoint(archive(tmp_path / "shell.pth", payload))
    assert not marker.exists()


def test_command_line_error(tmp_path, capsys):
    file = archive(tmp_path / "attack.pth", pickle.dumps(Attack(os.system, "true"), protocol=2))
    with pytest.raises(SystemExit) as exit_:
        main([str(file), str(tmp_path / "out.safetensors")])
    assert exit_.value.code == 2
    assert "nothing was run" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_other_files(tmp_path, content):
    file = tmp_path / "other.pth"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="no torch checkpoint"):
        read_checkpoint(file)


def test_truncated_pickle(tmp_path, released):
    source, _ = released
    with zipfile.ZipFile(source) as original:
        name = next(name for name in original.namelist() if name.endswith("data.pkl"))
        payload = original.read(name)
    with pytest.raises(UsageError, match="cannot be read"):
        read_checkpoint(archive(tmp_path / "short.pth", payload[: len(payload) // 2]))
