"""Every reward with released weights on the file lists of their repositories: what is fetched, and whether it fits."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
import transformers
from released.hub import HERE, WEIGHTS, Hub, listing

from t2ialign import checkpoints, plugins
from t2ialign.errors import UsageError

KINDS = {kind: part for kind, part in plugins.registry().parts["reward"].items() if part.target.startswith("t2ialign_")}
REPOSITORIES = sorted(file.parent.name.replace("--", "/") for file in HERE.glob("*/files.json"))


def released(kind: str) -> bool:
    """Whether a reward's weights are listed, and not just its tokenizer."""
    fields = KINDS[kind].config.model_fields
    own = fields.get("checkpoint", fields.get("model"))
    return own is not None and own.default in REPOSITORIES


def settings_of(reference: str) -> dict:
    """What is stated of the settings in a repository's root, if it is a single model."""
    return listing(reference)["about"].get("config.json", {})


CASES = [(kind, {}) for kind in KINDS if released(kind)]
CASES += [("hps", {"version": version}) for version in ("v2", "v2.1")]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_one_file_of_weights_is_fetched_and_no_foreign_one(kind, options, tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr(checkpoints, "resolve", hub)
    config = KINDS[kind].config(**options)
    reward = KINDS[kind].load()(config)
    with pytest.raises(UsageError):  # the files are empty
        reward.score(torch.rand(1, 3, 8, 8), ["a cat"])
    weights = {f"{reference}/{name}" for reference in hub.fetched for name in hub.weights(reference)}
    assert len(weights) == 1, weights
    fetched = weights.pop()
    assert not fetched.endswith((".h5", ".msgpack"))
    assert "open_clip" not in fetched
    assert options.get("version", "") in fetched
    beside = [name for name in listing(fetched.rsplit("/", 1)[0])["files"] if name.endswith(".safetensors")]
    assert fetched.endswith(".safetensors") or not beside  # a pickle where there is nothing else
    assert not {name for names in hub.fetched.values() for name in names if name.endswith((".zip", ".png"))}


@pytest.mark.parametrize("reference", [name for name in REPOSITORIES if "parameters" in settings_of(name)])
def test_a_model_at_full_size_has_the_stated_parameters(reference):
    about = settings_of(reference)
    settings = json.loads((HERE / reference.replace("/", "--") / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        if hasattr(transformers, about["class"]):
            kind = getattr(transformers, about["class"])
            model = kind(kind.config_class(**settings))
        else:
            model = getattr(diffusers, about["class"]).from_config(settings)
    assert sum(parameter.numel() for parameter in model.parameters()) == about["parameters"]


def test_every_listing_names_files_and_where_they_are_stated():
    for reference in REPOSITORIES:
        facts = listing(reference)
        assert facts["source"], reference
        assert any(name.endswith(WEIGHTS) for name in facts["files"]), reference
