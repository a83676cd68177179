"""Where a LoRA may lie; no network is needed to tell, and none is used here."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from t2ialign.errors import SpecError, UsageError
from t2ialign.lora.reading import find
from t2ialign.spec import checkpoints
from t2ialign.spec import parse as specs


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository; says what was asked of it."""
    asked = []
    for name in ("a.safetensors", "folder/b.safetensors", "pytorch_lora_weights.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({"x": torch.zeros(1)}, tmp_path / name)

    def download(name, revision, allow_patterns):
        asked.append((name, allow_patterns))
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


@pytest.mark.parametrize("file", ["a.safetensors", "folder/b.safetensors"])
def test_one_file_of_a_repository_is_downloaded_alone(hub, tmp_path, file):
    assert find(f"owner/name/{file}") == tmp_path / file
    assert hub == [("owner/name", [file])]


def test_of_a_whole_repository_only_lora_files_are_downloaded(hub, tmp_path):
    assert find("owner/name") == tmp_path / "pytorch_lora_weights.safetensors"
    assert all("*" not in pattern for pattern in hub[0][1])


def test_a_reference_that_is_nothing_is_refused_early(toy_spec):
    backend = {"kind": "toy-model", "checkpoint": "some/model", "lora": {"start": "no/such/file.bin"}}
    with pytest.raises(SpecError, match=r"backend\.lora\.start = .*no existing folder.*name/<file>\.safetensors"):
        specs.load(toy_spec(backend=backend))
    assert checkpoints.check("owner/name/file.safetensors")  # of a whole model that would be a mistake
    assert not checkpoints.check_lora("owner/name/file.safetensors")


def test_an_absent_file_of_the_hub_is_named(hub):
    with pytest.raises(UsageError, match=r"c\.safetensors"):
        find("owner/name/c.safetensors")
