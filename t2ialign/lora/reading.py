"""LoRA files of any origin: found, read, strengths folded into B, and fitted to a network."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from t2ialign.errors import UsageError
from t2ialign.foreign import parse_json, read_object, shown, tensor_header
from t2ialign.spec import checkpoints

log = logging.getLogger(__name__)

#: Where a LoRA's files lie is told without torch.
FILE, PEFT_FILE, PEFT_CONFIG = checkpoints.LORA_FILE, checkpoints.PEFT_FILE, checkpoints.PEFT_CONFIG
component_file, find = checkpoints.component_file, checkpoints.find_lora
#: (B, A) as the endings of names in the wild; with these alone a strength can be folded into B.
PAIRS = (
    (".lora_B.weight", ".lora_A.weight"),
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)
PEFT_PREFIX = "base_model.model."
#: Words in the names of other adapters' tensors.
OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a LoRA in Tucker form",
    "oft_": "OFT",
    ".diff": "a difference of whole weights",
}
TEXT_ENCODERS = ("text_encoder", "lora_te", "text_encoders")


def read(file: Path) -> dict[str, Tensor]:
    """The file's tensors under its own names, float32, with every strength (alpha / r) folded into B.

    Strengths come from ``.alpha`` tensors, from the header (``lora_adapter_metadata``), or from ``adapter_config.json``
    beside the file.

    Raises:
        UsageError: no readable safetensors file, or another kind of adapter.
    """
    try:
        tensor_header(file)
        with safe_open(file, "pt") as stream:
            names = list(stream.keys())
            tensors = {name: stream.get_tensor(name) for name in names}
            header = parse_json((stream.metadata() or {}).get("lora_adapter_metadata", "{}"))
        if not isinstance(header, dict):
            raise ValueError("its lora_adapter_metadata is no object")
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UsageError(f"no readable LoRA at {file}: {shown(error, 300)}") from error
    if config := _peft_config(file):
        header = {f"{PEFT_PREFIX.rstrip('.')}.{key}": value for key, value in config.items()}
    folded: dict[str, Tensor] = {}
    silent: list[str] = []
    other = dict(tensors)
    for up, down in PAIRS:
        modules = dict.fromkeys(name.removesuffix(end) for name in other for end in (up, down) if name.endswith(end))
        for module in modules:
            if lost := [module + end for end in (up, down) if module + end not in other]:
                raise UsageError(f"{file}: a layer lacks '{lost[0]}'")
            a, b = other.pop(module + down), other.pop(module + up)
            if not (a.is_floating_point() and b.is_floating_point()):
                raise UsageError(f"{file}: the factors of {shown(module, 100)} are {a.dtype}, {b.dtype}; quantised?")
            a, b = a.float(), b.float()
            if a.ndim < 2 or b.ndim < 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
                raise UsageError(
                    f"{file}: the factors of {shown(module, 100)} have shapes {(*a.shape,)}, {(*b.shape,)}"
                )
            alpha = other.pop(f"{module}.alpha", None)
            if alpha is not None and alpha.numel() != 1:
                raise UsageError(f"{file}: '{shown(module, 100)}.alpha' is {alpha.numel()} numbers")
            strength = _strength(module, a.shape[0], None if alpha is None else float(alpha), header)
            if not (math.isfinite(strength) and a.isfinite().all() and b.isfinite().all()):
                raise UsageError(f"{file}: the factors of {shown(module, 100)} are not all finite numbers")
            silent += [module] if not strength else []
            folded |= {module + down: a, module + up: b * strength}
    if other:
        kinds = [kind for word, kind in OTHERS.items() if any(word in name for name in other)]
        is_other = f"is {' and '.join(dict.fromkeys(kinds))}; " if kinds else ""
        raise UsageError(f"{file}: {is_other}only LoRA factors can be read, not {_some(sorted(other))}")
    if silent:
        log.warning("%s: %d layers have alpha = 0 and do nothing, such as %s", file, len(silent), silent[0])
    return folded


def fitted(
    network: nn.Module,
    reference: str | Path,
    prefix: str,
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """A LoRA for a network: "<module path>.lora_A.weight" (r, in) and "….lora_B.weight" (out, r), float32.

    Layers of text encoders are left out with a warning: no run goes through the encoders' LoRA.

    Args:
        network: what carries the LoRA, or an ``nn.ModuleDict`` of it and other components, whose files lie beside it.
        prefix: component name of the network.
        translate: names of a file -> "<prefix>.<module path>.lora_A.weight" and "….lora_B.weight".

    Raises:
        UsageError: no such file, or tensors that the network does not take, by name.
    """
    file = find(reference)
    tensors = read(file)
    if text := sorted(name for name in tensors if name.startswith(TEXT_ENCODERS)):
        log.warning("%s: %d tensors are for text encoders and are not used, such as %s", file, len(text), text[0])
    tensors = translate({name: tensor for name, tensor in tensors.items() if not name.startswith(TEXT_ENCODERS)})
    whole = isinstance(network, nn.ModuleDict)
    own = {(name if whole else name.removeprefix(f"{prefix}.")): tensor for name, tensor in tensors.items()}
    if isinstance(network, nn.ModuleDict):
        for component in set(network) - {prefix}:
            beside = file.with_name(component_file(component))
            own |= read(beside) if beside.is_file() else {}
    check_fit(file, network, own)
    modules = dict(network.named_modules())
    return {name: _like(modules[name.rpartition(".lora_")[0]], tensor) for name, tensor in own.items()}


def check_fit(file: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor belongs to a module of the network and has its shape.

    Raises:
        UsageError: names those that do not.
    """
    modules = dict(network.named_modules())
    wrong = []
    for name, tensor in tensors.items():
        path, _, side = name.rpartition(".lora_")
        weight = getattr(modules.get(path), "weight", None)
        if weight is None or side not in ("A.weight", "B.weight"):
            wrong.append(name)
            continue
        outputs, inputs = _sizes(modules[path])
        if tensor.shape[0 if side == "B.weight" else 1] != (outputs if side == "B.weight" else inputs):
            wrong.append(f"{name} {tuple(tensor.shape)}")
    if wrong or not tensors:
        kind = type(network).__name__
        raise UsageError(
            f"{file} is for another model: {len(wrong)} of {len(tensors)} tensors do not fit {kind}: {_some(wrong)}"
        )


def _like(module: nn.Module, factor: Tensor) -> Tensor:
    """A factor in the form of its layer: a linear layer and a 1 x 1 convolution are the same thing to many files."""
    if isinstance(base_layer(module), nn.Conv2d):
        return factor if factor.ndim == 4 else factor[:, :, None, None]
    return factor.flatten(1)


def base_layer(module: nn.Module) -> nn.Module:
    """The layer under a LoRA layer, or the module itself."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a layer, which a quantised weight's shape would not tell."""
    base: Any = base_layer(module)
    if hasattr(base, "in_features"):
        return base.out_features, base.in_features
    return base.weight.shape[0], base.weight.shape[1]


def _peft_config(file: Path) -> dict[str, Any]:
    config = file.with_name(PEFT_CONFIG)
    if file.name != PEFT_FILE or not config.is_file():
        return {}
    try:
        settings = read_object(config)
    except (OSError, ValueError) as error:
        raise UsageError(f"{config} {error}") from error
    unknown = [key for key in ("use_dora", "use_rslora", "fan_in_fan_out") if settings.get(key)]
    if settings.get("peft_type") != "LORA" or unknown:
        raise UsageError(
            f"{config}: only plain LoRA can be read, not {', '.join(unknown) or settings.get('peft_type')}"
        )
    return {"lora_alpha": 8, **settings}  # peft's own default


def _strength(module: str, rank: int, alpha: float | None, header: Mapping[str, Any]) -> float:
    """alpha / r of a module: its own ``.alpha``, else the header's, else 1."""
    if alpha is not None:
        return alpha / rank
    for prefix in {key.rpartition(".")[0] for key in header if key.endswith(".lora_alpha")}:
        path = module.removeprefix(f"{prefix}.")
        if path != module:
            patterns: Mapping[str, float] = header.get(f"{prefix}.alpha_pattern") or {}
            found = [a for pattern, a in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", path)]
            return float(found[0] if found else header[f"{prefix}.lora_alpha"]) / rank
    return 1.0


def _some(names: list[str]) -> str:
    return ", ".join(shown(name, 100) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
