"""What an evolution strategy moves: the factors of a LoRA, or the full weights of the adapted layers.

A space gives the evolved parameters, a context in which a batch goes through its members' weights, and a context in
which the network has one member's weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from t2ialign.errors import UsageError
from t2ialign.lora.adapter import ADAPTER, Adapter
from t2ialign_eggroll.batched import swapped
from t2ialign_eggroll.noise import Perturbation
from t2ialign_eggroll.population import Chunk, Form, lora_population, weight_population

Members = Mapping[str, Perturbation]


class Space(Protocol):
    """The parameters of an evolution strategy."""

    parameters: dict[str, nn.Parameter]

    def population(self, noise: Members, chunk: Chunk, form: Form) -> AbstractContextManager[None]:
        """Context: every image of the batch goes through its own member's weights."""

    def member(self, noise: Members) -> AbstractContextManager[None]:
        """Context: the network has the weights of the only member in ``noise``."""

    def scales(self, run: Callable[[], object]) -> dict[str, float]:
        """Natural size of each parameter; ``run`` generates some images."""

    def step_units(self, scales: Mapping[str, float]) -> dict[str, float]:
        """Rms of a parameter's entries that is a relative change of 1 of what its layer gives."""

    def commit(self) -> None:
        """Bring the LoRA that the run delivers up to date with the parameters."""


class LoraSpace:
    """The LoRA factors themselves.

    Args:
        adapter: the attached LoRA.
        train: which factors evolve, out of "A" and "B".
        compiled: whether the network's layers run in compiled code.
    """

    def __init__(self, adapter: Adapter, train: Sequence[str], compiled: bool = False) -> None:
        self.adapter, self.compiled = adapter, compiled
        endings = tuple(f"lora_{side}.weight" for side in train)
        self.parameters = {name: p for name, p in adapter.parameters().items() if name.endswith(endings)}

    def population(self, noise: Members, chunk: Chunk, form: Form) -> AbstractContextManager[None]:
        return lora_population(self.adapter.layers, noise, chunk, form, self.compiled)

    def member(self, noise: Members) -> AbstractContextManager[None]:
        return swapped(self.parameters, {n: e.added_to(self.parameters[n])[0] for n, e in noise.items()})

    def scales(self, run: Callable[[], object]) -> dict[str, float]:
        """B: rms of the layer's base output over rms of s A x, so that sigma is a relative change of the output.

        A: rms of its entries.
        """
        hidden = _rms({n: layer.lora_A[ADAPTER] for n, layer in self.adapter.layers.items()}, run)
        output = _rms({n: layer.get_base_layer() for n, layer in self.adapter.layers.items()}, run)
        found = {}
        for name, parameter in self.parameters.items():
            path, _, side = name.removesuffix(".weight").rpartition(".lora_")
            if side == "A":
                found[name] = parameter.detach().square().mean().sqrt().item()
            else:
                found[name] = output[path] / (self.adapter.scaling * hidden[path])
        return found

    def step_units(self, scales: Mapping[str, float]) -> dict[str, float]:
        """The r columns of B add up, in squares; A changes what it gives by as much as it changes itself."""
        root = math.sqrt(self.adapter.config.rank)
        return {name: scale / root if name.endswith("lora_B.weight") else scale for name, scale in scales.items()}

    def commit(self) -> None:
        """Nothing to do: the parameters are the LoRA."""


class WeightSpace:
    """The full weights W + D of the adapted layers; D starts at the LoRA's s B A, and W is never written.

    The run delivers the LoRA of the adapter's rank that is nearest to D in the Frobenius norm.
    """

    def __init__(self, adapter: Adapter, compiled: bool = False) -> None:
        self.adapter, self.compiled = adapter, compiled
        self.layers: dict[str, nn.Linear] = {}
        for name, layer in adapter.layers.items():
            base = layer.get_base_layer()
            if not isinstance(base, nn.Linear):
                raise UsageError(
                    f"optimizer.parameters = 'weights' evolves linear layers, and '{name}' is a"
                    f" {type(base).__name__}; leave it out of backend.lora.targets"
                )
            self.layers[name] = base
        lora = adapter.parameters()
        self.parameters = {
            f"{name}.weight": nn.Parameter(
                adapter.scaling * lora[f"{name}.lora_B.weight"].detach() @ lora[f"{name}.lora_A.weight"].detach()
            )
            for name in self.layers
        }

    def centre(self, name: str) -> Tensor:
        """W + D of a layer in float32."""
        return self.layers[name].weight.float() + self.parameters[f"{name}.weight"].detach()

    def population(self, noise: Members, chunk: Chunk, form: Form) -> AbstractContextManager[None]:
        return weight_population(self.adapter.layers, self.centre, noise, chunk, form, self.compiled)

    @contextmanager
    def member(self, noise: Members) -> Iterator[None]:
        weights = {name: base.weight for name, base in self.layers.items()}
        values = {
            name: noise[f"{name}.weight"].added_to(self.centre(name))[0].to(weight.dtype)
            for name, weight in weights.items()
        }
        with self.adapter.disabled(), swapped(weights, values):
            yield

    def scales(self, run: Callable[[], object]) -> dict[str, float]:
        """rms of the entries of W."""
        return {f"{n}.weight": base.weight.float().square().mean().sqrt().item() for n, base in self.layers.items()}

    def step_units(self, scales: Mapping[str, float]) -> dict[str, float]:
        """A change of W changes the output by as much as it changes W."""
        return dict(scales)

    @torch.no_grad()
    def commit(self) -> None:
        """B A = D / s, truncated: D = U S V^T, B = U_r sqrt(S_r) / s, A = sqrt(S_r) V_r^T."""
        for name, layer in self.adapter.layers.items():
            rank = self.adapter.ranks[name]
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            delta = self.parameters[f"{name}.weight"]
            if bool((delta == 0).all()):  # no direction is nearest to zero: keep A for the layer's start
                b.zero_()
                continue
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            root = s[:rank].sqrt()
            a.zero_()
            b.zero_()
            a[: len(root)] = root[:, None] * vh[:rank]
            b[:, : len(root)] = u[:, :rank] * root / self.adapter.scaling


def _rms(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, float]:
    """Root mean square of what each module gives while ``run`` runs.

    Raises:
        UsageError: a module is not called, or gives nothing but zeros.
    """
    squares: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            squares[name] = squares.get(name, 0) + output.detach().double().square().sum()
            counts[name] += output.numel()

        return hook

    handles = [module.register_forward_hook(observe(name)) for name, module in modules.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = {name: (squares[name] / n).sqrt().item() if n else 0.0 for name, n in counts.items()}
    if silent := [name for name, value in found.items() if value == 0]:
        raise UsageError(
            f"optimizer.sigma_scale = 'relative': {', '.join(silent[:3])} {'gives' if len(silent) == 1 else 'give'}"
            " nothing but zeros, or are never called; set it to 'absolute' or change backend.lora.targets"
        )
    return found
