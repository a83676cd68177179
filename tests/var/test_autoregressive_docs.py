"""The code of docs/autoregressive.md runs and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2ialign import LoraConfig
from t2ialign.lora import adapter as lora
from t2ialign.lora.file import write_lora
from t2ialign_var.backend import VarBackend
from t2ialign_var.config import VarConfig

PAGE = Path(__file__).parents[2] / "docs" / "autoregressive.md"


def code_block(word: str) -> str:
    """The Python block of the page that contains a word."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def test_a_merged_lora_gives_the_same_images(
    backend: VarBackend, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = lora.Adapter(backend.trainable, LoraConfig(rank=2, alpha=6.0), VarConfig().lora_targets())
    for name, parameter in adapter.parameters().items():
        if name.endswith("lora_B.weight"):
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    monkeypatch.chdir(tmp_path)
    export = tmp_path / "runs" / "eggroll-var" / "export"
    export.mkdir(parents=True)
    write_lora(adapter, "transformer", export / "pytorch_lora_weights.safetensors")
    torch.save(load_file(checkpoint / "var.safetensors"), "var_d16.pth")
    exec(code_block("torch.load"), {})
    merged = VarBackend(VarConfig(checkpoint=str(checkpoint), dtype="float32", top_k=16))
    weights = torch.load("var_d16_tuned.pth", weights_only=True)
    merged.transformer.load_state_dict({name: weights[name] for name in merged.transformer.state_dict()})
    conditioning = merged.encode(["ant", "bee"])
    tuned = backend.generate(conditioning, [0, 1])
    torch.testing.assert_close(merged.generate(conditioning, [0, 1]), tuned, rtol=0, atol=1e-4)
    shown = code_block("load_lora(").replace('"cuda"', '"cpu"').replace("golden retriever", "ant")
    sizes = f'checkpoint={str(checkpoint)!r}, dtype="float32", top_k=16'
    names: dict[str, Any] = {}
    exec(shown.replace('depth=16, dtype="bfloat16"', sizes), names)
    torch.testing.assert_close(names["images"], tuned[:1], rtol=0, atol=1e-4)
    with adapter.disabled():
        assert not torch.allclose(backend.generate(conditioning, [0, 1]), tuned)


def test_tables_and_defaults_agree_with_the_code() -> None:
    from t2ialign_infinity.config import InfinityConfig
    from t2ialign_infinity.variants import VARIANTS

    page = PAGE.read_text()
    for name, variant in VARIANTS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2].split()[0] == variant.resolution
        assert float(cells[3]) == variant.tau
        assert int(cells[4]) == variant.transformer["bits"]
    for title, config in (("VAR", VarConfig()), ("Infinity", InfinityConfig())):
        row = f"| {title} | " + ", ".join(f"`{target}`" for target in config.lora_targets()) + " |"
        assert row in page
