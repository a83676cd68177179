"""Backends of released models with random weights, from their configurations alone: for measurements without a network.

``random_weights()`` is a context in which every backend takes the sizes that its checkpoint's folder tells, draws its
weights on the device, and has random embeddings for prompts, of the longest length; all else is the backends' own code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import t2ialign_diffusers.backend
import t2ialign_infinity.backend
import t2ialign_var.backend
from t2ialign.tensors import seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_diffusers.backend import DiffusersBackend
from t2ialign_diffusers.folder import open_outline
from t2ialign_diffusers.outline import outline, rows_without_values
from t2ialign_diffusers.quiet import quiet_libraries
from t2ialign_infinity.backend import InfinityBackend
from t2ialign_var.loading import fill

#: Text tokens of a prompt for Infinity, whose texts have any length.
TOKENS = 64


@torch.no_grad()
def draw(name: str, tensor: Tensor, device: torch.device) -> Tensor:
    """Values of a parameter or buffer that let activations neither vanish nor grow, the same in every process: of some
    values, a small model's layer changes no image, which EGGROLL refuses."""
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if not tensor.is_floating_point():
        return value.zero_()
    if tensor.ndim < 2:
        return value.fill_(1.0 if name.endswith("weight") else 0.0)
    source = torch.Generator(device).manual_seed(seeding.derive(0, name))
    return value.normal_(std=1 / math.sqrt(tensor[0].numel()), generator=source)


def drawn(module: nn.Module, device: torch.device) -> nn.Module:
    """A module of the meta device with weights."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    module.to_empty(device=device)
    with torch.no_grad():
        for name, old in tensors.items():
            owner, _, own = name.rpartition(".")
            getattr(module.get_submodule(owner), own).copy_(draw(name, old, device))
    return module


def _loaded(self: DiffusersBackend, dtypes: dict[str, str]) -> Any:
    folders = {self.trained_component: self.network_settings, "vae": self.folder / "vae"}
    with quiet_libraries():
        pipeline = SimpleNamespace(**vars(outline(folders, dtypes)))
    parts = {"network": getattr(pipeline, self.trained_component), "decoder": pipeline.vae}
    for module in parts.values():
        drawn(module, torch.device("cpu" if self.config.offload != "none" else self.device))
    if self.channels_last:
        parts["network"].to(memory_format=torch.channels_last)
    self._place(**parts)
    return pipeline


def _embedded(prompts: Sequence[str], shapes: Mapping[str, Any], ragged: Mapping[str, str], dtype: str) -> Conditioning:
    rows = rows_without_values(prompts, shapes, ragged, dtype)
    source = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(t.shape, dtype=t.dtype)
        if t.dtype == torch.bool
        else torch.randn(t.shape, generator=source).to(t.dtype)
        for name, t in rows.tensors.items()
    }
    return Conditioning(tuple(prompts), tensors)


def _encode(self: DiffusersBackend, prompts: Sequence[str]) -> Conditioning:
    return _embedded(prompts, self.row_shapes(), self.ragged, self.stable_dtype)


def _encode_infinity(self: InfinityBackend, prompts: Sequence[str]) -> Conditioning:
    sizes = self.sizes["transformer"]
    shapes = {"text": (min(TOKENS, sizes["text_length"]), sizes["text_channels"])}
    return _embedded(prompts, shapes, {"text": "text_mask"}, "float32")


@contextmanager
def random_weights(device: torch.device) -> Iterator[None]:
    def open_folder(reference: str, revision: Any, pipelines: Any, components: Any, *rest: Any) -> Path:
        return open_outline(reference, revision, pipelines, (), ())

    def filled(module: nn.Module, tensors: Mapping[str, Tensor], *rest: Any) -> nn.Module:
        return fill(module, {name: draw(name, value, device) for name, value in module.state_dict().items()}, *rest)

    with ExitStack() as stack:

        def patch(owner: Any, name: str, new: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, new))

        patch(t2ialign_diffusers.backend, "open_checkpoint", open_folder)
        patch(DiffusersBackend, "_loaded", _loaded)
        patch(DiffusersBackend, "encode", _encode)
        patch(InfinityBackend, "encode", _encode_infinity)
        for module in (t2ialign_var.backend, t2ialign_infinity.backend):
            patch(module, "read_tensors", lambda *arguments, **options: {})
            patch(module, "check_depth", lambda *arguments: None)
            patch(module, "fill", filled)
        yield


def shrunk(folder: Path, target: Path, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    """A copy of a checkpoint's configurations in which some parts have other sizes; a value None leaves a key out."""
    for file in folder.rglob("*.json"):
        settings = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            settings |= changes.get(file.parent.name, {}) if file.name == "config.json" else {}
            settings = {key: value for key, value in settings.items() if value is not None}
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(settings), encoding="utf-8")
    if not (words := target / "tokenizer/tokenizer_config.json").exists():
        words.parent.mkdir(exist_ok=True)
        words.write_text("{}", encoding="utf-8")
    return target


def var_checkpoint(target: Path, transformer: Mapping[str, Any], vqvae: Mapping[str, Any]) -> Path:
    """The folder of a VAR of one's own, without weights."""
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps({"transformer": dict(transformer), "vqvae": dict(vqvae)}))
    (target / "classes.json").write_text(json.dumps([f"class {n}" for n in range(transformer["classes"])]))
    return target


def infinity_checkpoint(target: Path, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Path:
    """The folder of an Infinity of one's own, without weights."""
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps({"transformer": dict(transformer), "vae": dict(vae)}))
    for name in ("infinity", "vae"):
        (target / f"{name}.safetensors").touch()
    return target
