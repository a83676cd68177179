"""LoRAs that become a part of the weights: of the frozen base, or of a checkpoint that is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t2ialign.errors import UsageError
from t2ialign.lora.file import inner
from t2ialign.lora.reading import fitted
from t2ialign.storage.files import write_json
from t2ialign.storage.tensor_files import write_tensors
from t2ialign_diffusers.lora_names import to_modules
from t2ialign_diffusers.originals import originals

if TYPE_CHECKING:
    from t2ialign_diffusers.config import BaseLora


def changed(weight: Tensor, tensors: Mapping[str, Tensor], layer: str, strength: float = 1.0) -> Tensor:
    """W + strength B A in float32, rounded to the weight's dtype. Convolutions: A (r, in, h, w), B (out, r, 1, 1)."""
    if not weight.is_floating_point():
        raise UsageError(
            f"the weights of '{layer}' are quantised in their file, so that no LoRA can be merged into them"
        )
    b, a = (tensors[f"{layer}.lora_{side}.weight"].to(weight.device) for side in "BA")
    return (weight.float() + strength * (b.flatten(1) @ a.flatten(1)).view_as(weight)).to(weight.dtype)


@torch.no_grad()
def merge_base(network: nn.Module, component: str, loras: list[BaseLora]) -> None:
    """Merge LoRAs into a network that was just loaded.

    Raises:
        UsageError: no such LoRA, or one for another network.
    """

    def names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_modules(tensors, network, originals(network))

    for lora in loras:
        tensors = fitted(network, lora.path, component, names)
        for layer in dict.fromkeys(name.rpartition(".lora_")[0] for name in tensors):
            weight: Any = network.get_submodule(layer).weight
            weight.copy_(changed(weight, tensors, layer, lora.weight))


@torch.no_grad()
def write_fused(
    checkpoint: Path,
    networks: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    folder: Path,
    variant: str | None,
) -> None:
    """A checkpoint with new weights in some components; it loads like the old one, whose card stays behind.

    Args:
        networks: component -> its network, LoRA layers included.
        tensors: "<component>.<module path>.lora_A.weight" and "….lora_B.weight".
        variant: which of the checkpoint's weights are in use.
    """

    def left_out(place: str, names: list[str]) -> list[str]:
        inside = str(Path(place).relative_to(checkpoint))
        return [name for name in names if inside in networks or (inside == "." and name == "README.md")]

    shutil.copytree(checkpoint, folder, ignore=left_out)
    file = f"diffusion_pytorch_model.{variant}.safetensors" if variant else "diffusion_pytorch_model.safetensors"
    for component, network in networks.items():
        (folder / component).mkdir(exist_ok=True)
        write_tensors(folder / component / file, fused_state(network, inner(tensors, f"{component}.")))
        network.save_config(folder / component)  # type: ignore[operator]
        settings = json.loads((folder / component / "config.json").read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)  # where the checkpoint lay on this machine
        write_json(folder / component / "config.json", settings)


def fused_state(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's state without LoRA layers, their change added to the weights below them."""
    state = {}
    for name, tensor in network.state_dict().items():
        if ".lora_" not in name:
            plain = name.replace(".base_layer.", ".")
            layer = plain.removesuffix(".weight")
            has_lora = f"{layer}.lora_A.weight" in tensors
            state[plain] = changed(tensor, tensors, layer) if has_lora else tensor
    return state
