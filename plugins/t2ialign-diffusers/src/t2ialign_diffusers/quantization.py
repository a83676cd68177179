"""Linear layers of a frozen network in 8 or 4 bits, made when it loads; everything else keeps the network's dtype."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from t2ialign.errors import UsageError
from t2ialign.lora.adapter import matching
from t2ialign_diffusers.config import QuantizationConfig

PACKAGES = {"int8": "torchao", "float8": "torchao", "nf4": "bitsandbytes"}


def quantize(network: nn.Module, config: QuantizationConfig) -> None:
    """Quantise the weights of all linear layers but ``config.skip`` in place, each layer on its own.

    int8 and float8: one scale per output row, products in the network's dtype. nf4: one scale per 64 weights
    (arXiv 2305.14314), made when the network moves to its device.

    Raises:
        UsageError: the package that computes with this format is not installed, or a skipped name is no linear layer.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for name in config.skip:
        if not matching(linear, [name]):
            raise UsageError(f"backend.quantization.skip: '{name}' matches no linear layer of the network")
    chosen = set(linear) - set(matching(linear, config.skip))
    try:
        _nf4(network, chosen) if config.kind == "nf4" else _torchao(network, chosen, config.kind)
    except ImportError as error:
        package = PACKAGES[config.kind]
        raise UsageError(
            f"backend.quantization.kind = '{config.kind}' needs the package {package}: pip install {package} ({error})"
        ) from error


def _torchao(network: nn.Module, chosen: set[str], kind: str) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    how = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    # peft says that it could not merge a LoRA into such layers; nothing here merges.
    warnings.filterwarnings("ignore", message=".*without `get_apply_tensor_subclass`")
    quantize_(network, how, filter_fn=lambda module, name: name in chosen)


def _nf4(network: nn.Module, chosen: set[str]) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in chosen:
        old: Any = network.get_submodule(name)
        new = Linear4bit(
            old.in_features, old.out_features, old.bias is not None, old.weight.dtype, quant_type="nf4", device="meta"
        )
        new.weight = Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = old.bias
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)
