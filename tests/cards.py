"""The code on a model card, and that beside a file of noise, run as they are printed, at the run's noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from t2ialign import LoraConfig, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign.storage.images import to_pil

PROMPT = "a red circle"


def drawn(backend: Any, sampler: Any, folder: Path, monkeypatch: Any, call: str = "") -> tuple[Tensor, Tensor]:
    """The run's image and the card's, with a LoRA that shows, in [0, 1].

    Args:
        folder: the card's own.
        call: further arguments of the card's call, for checkpoints too small for its own.
    """
    adapter = Adapter(backend.trainable, LoraConfig(rank=1), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * seeding.normal([i], parameter.shape)[0])
    write_lora(adapter, backend.info.adapter_prefix, folder / "pytorch_lora_weights.safetensors")
    images = backend.generate(backend.encode([PROMPT]), [3], sampler)
    latents = backend.noise([3])
    if backend.pipeline_names[0] in ("FluxPipeline", "QwenImagePipeline"):
        latents = diffusers.FluxPipeline._pack_latents(latents, *latents.shape)
    code = backend.snippet(sampler)
    assert '"a prompt",\n' in code
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"noise": latents}
    exec(code.replace('"a prompt",\n', f'"{PROMPT}", latents=noise, output_type="pt",{call}\n'), names)
    return images[0], names["image"]


def drawn_from_a_file(backend: Any, sampler: Any, folder: Path, monkeypatch: Any) -> tuple[Any, Any]:
    """The run's picture and that of the code which loads its noise from a file, as numbers of 0 to 255."""
    save_file({"latents": backend.noise([3])}, folder / "noise.safetensors")
    ours = to_pil(backend.generate(backend.encode([PROMPT]), [3], sampler)[0])
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(backend.noise_snippet(PROMPT, "noise.safetensors", sampler), names)
    return np.asarray(ours, dtype=int), np.asarray(names["image"], dtype=int)
