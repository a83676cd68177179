"""The low-rank adapter: attach with peft, start it, read and write its tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from t2ialign.config import LoraConfig
from t2ialign.errors import UsageError
from t2ialign.tensors import seeding

ADAPTER = "default"
GUEST = "guest"


class Adapter:
    """LoRA layers inside a frozen module: W x becomes W x + (alpha / r) B A x.

    A is (r, in), B is (out, r), both float32 whatever the base's dtype; B starts at zero, so the start is the base.
    r may differ between layers.

    Attributes:
        module: the network that carries the layers.
        layers: module path -> peft layer.
        scaling: alpha / r.
        name: peft's name of the adapter.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoraConfig,
        targets: Sequence[str],
        seed: int = 0,
        ranks: Mapping[str, int] | None = None,
        name: str = ADAPTER,
    ) -> None:
        """Attach new layers to every module whose path ends in one of ``targets``.

        Args:
            ranks: module path -> rank, where it is not ``config.rank``.

        Raises:
            UsageError: a target matches no module, or only modules that cannot take a LoRA.
        """
        self.module = module
        self.config = config
        self.targets = list(targets)
        self.scaling = config.scaling
        _check_targets(module, self.targets)
        exact = {f"^{re.escape(path)}": rank for path, rank in (ranks or {}).items()}
        peft_config = PeftLoraConfig(
            r=config.rank,
            lora_alpha=config.scaling * config.rank,
            target_modules=self.targets,
            rank_pattern=exact,
            alpha_pattern={path: config.scaling * rank for path, rank in exact.items()},
            lora_dropout=0.0,
        )
        try:
            inject_adapter_in_model(peft_config, module, adapter_name=name)
        except ValueError as error:
            raise UsageError(f"backend.lora.targets: {error}") from error
        module.requires_grad_(False)
        self.name = name
        self.layers = layers_of(module, name)
        for path, layer in self.layers.items():
            layer.lora_A[name].float().requires_grad_(True)
            layer.lora_B[name].float().requires_grad_(True)
            weight = layer.lora_A[name].weight
            bound = weight[0].numel() ** -0.5  # peft's Kaiming-uniform(sqrt 5), from a seed of our own
            draw = torch.rand(weight.shape, generator=seeding.generator(seeding.derive(seed, "lora", path)))
            weight.data.copy_((2 * draw - 1) * bound)

    def parameters(self) -> dict[str, nn.Parameter]:
        """ "<module path>.lora_A.weight" and "….lora_B.weight" in the module's order."""
        return factors(self.layers, self.name)

    @property
    def ranks(self) -> dict[str, int]:
        """Module path -> rank."""
        return {path: layer.r[self.name] for path, layer in self.layers.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors named as in ``parameters`` into the adapter.

        Raises:
            UsageError: names or shapes differ.
        """
        own = self.parameters()
        if missing := own.keys() - tensors.keys():
            raise UsageError(f"LoRA state lacks {sorted(missing)[0]} and {len(missing) - 1} more")
        with torch.no_grad():
            for name, parameter in own.items():
                if tensors[name].shape != parameter.shape:
                    raise UsageError(
                        f"LoRA state {name} is {tuple(tensors[name].shape)}, the model needs {tuple(parameter.shape)}"
                    )
                parameter.copy_(tensors[name])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the module is the base model."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    @contextmanager
    def swapped(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the adapter has other tensors, named as in ``parameters``: an average, an old policy."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}
        self.load(tensors)
        try:
            yield
        finally:
            self.load(own)

    def folded(self) -> dict[str, Tensor]:
        """CPU copies for export with the scale folded into B, so that every loader gets the right strength."""
        tensors = {name: p.detach().float().cpu().clone() for name, p in self.parameters().items()}
        for name in tensors:
            if name.endswith("lora_B.weight"):
                tensors[name] *= self.scaling
        return tensors

    @contextmanager
    def rescaled(self) -> Iterator[None]:
        """Inside, the scale is folded into B, as in files: the same function by the files' own arithmetic."""
        factors_b = {name: p for name, p in self.parameters().items() if name.endswith("lora_B.weight")}
        kept = {name: p.detach().clone() for name, p in factors_b.items()}
        scales = {path: layer.scaling[self.name] for path, layer in self.layers.items()}
        for parameter in factors_b.values():
            parameter.data *= self.scaling
        for layer in self.layers.values():
            layer.scaling[self.name] = 1.0
        try:
            yield
        finally:
            for name, parameter in factors_b.items():
                parameter.data.copy_(kept[name])
            for path, layer in self.layers.items():
                layer.scaling[self.name] = scales[path]

    @torch.no_grad()
    def start_from_activations(self, run: Callable[[], object]) -> None:
        """Start A at the leading directions of each layer's inputs (as in EVA, arXiv 2410.07170, and CorDA).

        Row j of A is the j-th eigenvector of the inputs' uncentred second-moment matrix, with positive mean, scaled
        so that A x has rms 1. With B = 0 the model stays the base.

        Args:
            run: generates some images with the adapted module.

        Raises:
            UsageError: a layer's input was never seen, or has fewer directions than the rank.
        """
        moments: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0].detach().float()
                x = x.movedim(1, -1) if x.ndim == 4 else x  # a 1x1 convolution sees channels second
                x = x.reshape(-1, x.shape[-1])
                moments[name] = moments.get(name, 0) + x.T @ x
                counts[name] = counts.get(name, 0) + len(x)

            return hook

        handles = [layer.register_forward_pre_hook(observe(name)) for name, layer in self.layers.items()]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        for name, layer in self.layers.items():
            if name not in moments:
                raise UsageError(f"backend.lora.targets: '{name}' is never called when an image is generated")
            values, vectors = torch.linalg.eigh(moments[name].double() / counts[name])
            rank = layer.r[self.name]
            values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
            if len(values) < rank or bool(values[-1] <= 1e-12 * values[0]):
                raise UsageError(f"backend.lora: the inputs of '{name}' have fewer than rank = {rank} directions")
            sign = torch.where(vectors.mean(0) < 0, -1.0, 1.0)
            rows = (vectors * sign / values.sqrt()).T
            weight = layer.lora_A[self.name].weight
            weight.copy_(rows.reshape(weight.shape))


def layers_of(module: nn.Module, name: str) -> dict[str, LoraLayer]:
    """Module path -> peft layer, of the layers that have factors of the adapter ``name``."""
    return {path: m for path, m in module.named_modules() if isinstance(m, LoraLayer) and name in m.lora_A}


def factors(layers: Mapping[str, LoraLayer], name: str) -> dict[str, nn.Parameter]:
    """ "<module path>.lora_A.weight" and "….lora_B.weight" of the adapter ``name``."""
    return {
        f"{path}.lora_{side}.weight": side_of[name].weight
        for path, layer in layers.items()
        for side, side_of in (("A", layer.lora_A), ("B", layer.lora_B))
    }


@contextmanager
def guest(module: nn.Module, load: Callable[[str], None], name: str = GUEST) -> Iterator[dict[str, LoraLayer]]:
    """Inside, the module goes through a second LoRA alone; afterwards it is what it was before.

    Args:
        load: attaches the LoRA under the name that it is given.

    Yields:
        Module path -> layer, of the layers that the LoRA has.
    """
    before = {id(m): (list(m.active_adapters), m.disable_adapters) for m in _lora_layers(module)}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        with warnings.catch_warnings(action="ignore"):  # peft warns of a second adapter
            load(name)
        for layer in _lora_layers(module):
            layer.enable_adapters(name in layer.lora_A)
            if name in layer.lora_A:
                layer.set_adapter(name)
        yield layers_of(module, name)
    finally:
        remove(module, name)
        for layer in _lora_layers(module):
            active, disabled = before[id(layer)]
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
        module.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def remove(module: nn.Module, name: str) -> None:
    """Take the adapter ``name`` off, and layers that have no other one with it."""
    for path, layer in layers_of(module, name).items():
        with warnings.catch_warnings(action="ignore"):  # peft says which adapter it makes active
            layer.delete_adapter(name)
        if not layer.lora_A:
            parent, _, child = path.rpartition(".")
            setattr(module.get_submodule(parent), child, layer.get_base_layer())
    for part in module.modules():
        configs = getattr(part, "peft_config", None)
        if isinstance(configs, dict):
            configs.pop(name, None)
            if not configs:
                del part.peft_config


def _lora_layers(module: nn.Module) -> list[LoraLayer]:
    return [m for m in module.modules() if isinstance(m, LoraLayer)]


def move_adapters(module: nn.Module, device: torch.device) -> None:
    """Bring LoRA factors to the device; peft puts them beside the base weights, which may wait on the CPU."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A.to(device)
            layer.lora_B.to(device)


def matching(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Module paths that a target names: equal to it, or ending in "." + target (peft's rule)."""
    return [name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)]


def _check_targets(module: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for target in targets:
        if not matching(names, [target]):
            endings = sorted(
                {name.rpartition(".")[2] for name, m in module.named_modules() if isinstance(m, nn.Linear)}
            )
            raise UsageError(
                f"backend.lora.targets: '{target}' matches no module of {type(module).__name__};"
                f" names of its linear layers end in {', '.join(endings)}"
            )
