"""Names of LoRA factors in the wild: those of diffusers, PEFT, kohya, and of original checkpoints with fused layers.

An original checkpoint may hold one layer where diffusers has several, such as the projections to q, k and v, whose rows
lie below one another. ``Originals`` says which: original name, with "_" between its parts -> diffusers modules by rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from t2ialign.errors import UsageError
from t2ialign.lora.reading import PAIRS, base_layer

Originals = Mapping[str, Sequence[str]]
#: What tools write in front of a module's name, longest first.
PREFIXES = (
    "unet.base_model.model.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_transformer_",
    "lora_unet_",
    "transformer.",
    "unet.",
    "",
)


def to_modules(tensors: Mapping[str, Tensor], network: nn.Module, originals: Originals) -> dict[str, Tensor]:
    """Factors under "<module path>.lora_A.weight" and "….lora_B.weight"; a name that is nobody's stays as it is.

    Args:
        tensors: pairs of factors under any of ``PAIRS``, strengths folded into B.
    """
    known: dict[str, Sequence[str]] = {path.replace(".", "_"): [path] for path, _ in network.named_modules()}
    known |= originals
    sizes = outputs(network)
    found: dict[str, Tensor] = {}
    for up, down in PAIRS:
        for name in [name for name in tensors if name.endswith(up)]:
            module = name.removesuffix(up)
            b, a = tensors[name], tensors[module + down]
            modules = _lookup(module, known)
            if not modules or sum(sizes.get(path, 0) for path in modules) != b.shape[0]:
                found |= {name: b, module + down: a}
                continue
            for path, part in zip(modules, b.split([sizes[path] for path in modules]), strict=True):
                used = part.flatten(1).any(0)  # in a block diagonal, a part has columns of its own
                if len(modules) == 1 or bool(used.any()):
                    columns = used if len(modules) > 1 else torch.ones_like(used)
                    found |= {f"{path}.lora_A.weight": a[columns], f"{path}.lora_B.weight": part[:, columns]}
    return found


def _lookup(name: str, known: Mapping[str, Sequence[str]]) -> Sequence[str] | None:
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    plain = name.removeprefix(prefix).replace("processor.", "").replace(".", "_")
    return known.get(plain) or (known.get(f"{plain}_0") if plain.endswith("to_out") else None)


def to_kohya(tensors: Mapping[str, Tensor], network: nn.Module, originals: Originals) -> dict[str, Tensor]:
    """Factors under the names of kohya's scripts, with alpha = rank where all ranks are equal.

    Several factors of a fused layer become one: down = the A below one another, up = block diagonal of the B.
    Readers without an alpha take the rank, and diffusers gets unequal alphas of a UNet wrong.

    Args:
        tensors: "<module path>.lora_A.weight" and "….lora_B.weight", strengths folded into B.

    Raises:
        UsageError: a layer that the original checkpoint has under no name.
    """
    paths = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    named = dict(originals) or {path.replace(".", "_"): [path] for path in paths}
    if homeless := sorted(set(paths) - {path for modules in named.values() for path in modules}):
        raise UsageError(f"export.formats = 'kohya': no original checkpoint has a layer like '{homeless[0]}'")
    sizes = outputs(network)
    result: dict[str, Tensor] = {}
    for name, modules in named.items():
        own = [path for path in modules if path in paths]
        if not own:
            continue
        down = torch.cat([tensors[f"{path}.lora_A.weight"] for path in own])
        up = tensors[f"{own[0]}.lora_B.weight"]
        if len(modules) > 1:
            up = up.new_zeros(sum(sizes[path] for path in modules), len(down))
            row = column = 0
            for path in modules:
                if path in own:
                    b = tensors[f"{path}.lora_B.weight"]
                    up[row : row + b.shape[0], column : column + b.shape[1]] = b
                    column += b.shape[1]
                row += sizes[path]
        result |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
    ranks = {name: tensor.shape[0] for name, tensor in result.items() if name.endswith(".lora_down.weight")}
    if originals or len(set(ranks.values())) == 1:
        for name, rank in ranks.items():
            result[name.replace(".lora_down.weight", ".alpha")] = torch.tensor(float(rank))
    return result


def outputs(network: nn.Module) -> dict[str, int]:
    """Module path -> outputs, of every linear layer and convolution."""
    layers = ((path, base_layer(module)) for path, module in network.named_modules())
    return {
        path: layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for path, layer in layers
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
