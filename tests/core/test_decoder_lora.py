"""A LoRA on the decoder beside the network's, in a whole run."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner
from worlds import WORLD

from t2ialign.cli import app
from t2ialign.errors import UsageError
from t2ialign.problem.export import check_export, write_export
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs


@pytest.fixture
def spec(tmp_path):
    text = WORLD.replace("sana-sprint", "sd-turbo").replace("sprint-washed", "sd-turbo")
    text = text.replace("complex_human_instruction = false\n", "lora_decoder = true\n")
    text = text.replace('["attn2.to_out.0"]', '["to_q", "mid_block.resnets.0.conv1"]').replace(
        "shapes-graded", "jpeg-compressibility"
    )
    (tmp_path / "spec.toml").write_text(text)
    return tmp_path / "spec.toml"


def test_a_population_moves_and_exports_it(spec, tmp_path):
    """Both files are checked in place; the network's also has kohya's form."""
    problem = assemble(specs.load(spec), report=lambda text: None)
    optimizer = load_optimizer(problem)
    optimizer.step(0)
    write_export(problem, tmp_path / "export")
    check_export(problem, tmp_path / "export")
    files = {path.name: load_file(path) for path in (tmp_path / "export").glob("*_weights.safetensors")}
    assert sorted(files) == ["pytorch_lora_weights.safetensors", "vae_lora_weights.safetensors"]
    assert all(name.startswith("unet.") for name in files["pytorch_lora_weights.safetensors"])
    assert all(name.startswith("vae.decoder.") for name in files["vae_lora_weights.safetensors"])
    assert all(tensor.any() for tensor in files["vae_lora_weights.safetensors"].values())
    counted = CliRunner().invoke(app, ["validate", str(spec)]).stdout
    parameters = sum(tensor.numel() for file in files.values() for tensor in file.values())
    assert f"{parameters:,} in {len(problem.adapter.layers)} modules" in counted


def test_a_decoder_without_such_layers_is_an_error(spec):
    with pytest.raises(UsageError, match="no layer of the decoder has the name of a target"):
        assemble(specs.load(spec, ["backend.lora.targets=['attn2.to_q']"]), report=lambda text: None)
