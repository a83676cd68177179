"""An exported noise network in a diffusers pipeline, or in any network that was trained so. Needs no run and no spec.

refine = HyperNoise(pipe.transformer, "export")
image = refine(pipe, "a prompt", latents=torch.randn(...), num_inference_steps=1).images[0]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign import UsageError
from t2ialign.lora.file import attach
from t2ialign.lora.reading import check_fit, read
from t2ialign_search.hyper_noise.network import NoiseNetwork

FILE = "hyper_noise.safetensors"
LAST = "t2ialign.last_layer"


class _Asked(Exception):
    """The pipeline came to its network."""


class HyperNoise:
    """Better noise for a network, which itself stays as it is."""

    def __init__(self, network: nn.Module, folder: str | Path, name: str = "hyper_noise") -> None:
        """
        Args:
            network: ``pipe.transformer`` or ``pipe.unet``.
            folder: an export of ``hyper-noise``, or its file.
            name: peft's name of the adapter.

        Raises:
            UsageError: no such file, or one of another network.
        """
        path = Path(folder)
        path = path / FILE if path.is_dir() else path
        tensors, last = read_network(path)
        check_fit(path, network, tensors)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.network = network
        self.switch = NoiseNetwork(attach(network, tensors, name), last)
        for layer in self.switch.adapter.layers.values():
            layer.enable_adapters(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def residual(self, *arguments: Any, **named: Any) -> Tensor:
        """What is to be added to the noise: the network's output as the noise network, called as the network is."""
        layers = self.switch.adapter.layers.values()
        for layer in layers:
            layer.enable_adapters(True)
        try:
            with self.switch.noise_network():
                output = self.network(*arguments, **named)
        finally:
            for layer in layers:
                layer.enable_adapters(False)
        output = getattr(output, "sample", output)
        return output[0] if isinstance(output, tuple | list) else output

    def __call__(self, pipe: Any, *arguments: Any, latents: Tensor, **named: Any) -> Any:
        """The pipeline's call, from better latents: one more evaluation of its network, at its own first inputs.

        Args:
            pipe: a diffusers pipeline with the network.
            latents: unit noise as the pipeline takes it.

        Raises:
            ValueError: the pipeline guides: its network sees other rows than the latents.
        """
        asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            asked.append((inputs, options))
            raise _Asked

        handle = self.network.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            pipe(*arguments, latents=latents.clone(), **named)
        except _Asked:
            pass
        finally:
            handle.remove()
        if not asked:
            raise ValueError("the pipeline does not call the network that this noise network was loaded into")
        inputs, options = asked[0]
        residual = self.residual(*inputs, **options)
        if residual.shape != latents.shape:
            raise ValueError(
                f"the network's output is {tuple(residual.shape)} for latents {tuple(latents.shape)}: switch"
                " classifier-free guidance off, one-step models have none"
            )
        return pipe(*arguments, latents=latents + residual.to(latents), **named)


def read_network(path: Path) -> tuple[dict[str, Tensor], str]:
    """LoRA factors by "<module path>.lora_A.weight" and "….lora_B.weight", and the path of the last layer.

    Raises:
        UsageError: there is no such file, or it is no noise network.
    """
    from safetensors import safe_open

    tensors = read(path)
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    if LAST not in header:
        raise UsageError(f"{path}: is no noise network of 'hyper-noise': its header has no '{LAST}'")
    prefix = next(iter(tensors)).partition(".")[0] + "."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, header[LAST]
