"""A spec's parts without weights, and what one micro-batch of them takes: bytes and operations, measured by running."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2ialign.config import CHECKPOINT
from t2ialign.errors import UsageError, blaming
from t2ialign.estimate.tally import tallied
from t2ialign.lora.adapter import Adapter
from t2ialign.parts.backend import Backend
from t2ialign.parts.reward import Reward
from t2ialign.spec import checkpoints
from t2ialign.spec.model import ChosenReward, Spec
from t2ialign.tensors.conditioning import Conditioning

#: Samplers of no more evaluations are run as a whole.
SHORT = 12
#: Images that stand for a micro-batch where images must really be drawn or scored.
FEW = 2


@dataclass
class Outline:
    """Bytes, and floating-point operations, of a micro-batch of ``rows`` images.

    Attributes:
        weights: by component, as they lie on the device while images are drawn; those of rewards among them.
        text: the text encoders' weights, which leave before.
        lora: numbers in the LoRA.
        row: conditioning of one prompt.
        activations: of what runs: "network call", "decoder", "rewards", "backward pass".
        operations: of "network call", "decoder", "rewards", for one image.
        unknown: what could not be looked at, and why.
    """

    rows: int
    weights: dict[str, int] = field(default_factory=dict)
    text: int = 0
    lora: int = 0
    row: int = 0
    activations: dict[str, int] = field(default_factory=dict)
    operations: dict[str, float] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    image_size: tuple[int, int] = (0, 0)


def outline(spec: Spec, rows: int) -> Outline:
    """Build and run the parts of a spec: the backend on the meta device, rewards that are here with a few images.

    Raises:
        UsageError: the backend has no outline, and its checkpoint is not here either.
    """
    found = Outline(rows)
    backend = _backend(spec)
    found.image_size = backend.info.image_size
    found.weights |= backend.resident()
    found.text = backend.text_bytes()
    adapter = _adapter(spec, backend)
    found.lora = sum(parameter.numel() for parameter in adapter.parameters().values()) if adapter else 0
    real = backend.device.type != "meta"
    count = FEW if real else rows
    texts = (spec.training_prompts() * count)[:count]
    with blaming(backend.label):
        conditioning = backend.encode(texts)
        found.row = sum(tensor.nbytes for tensor in conditioning.tensors.values()) // count
        _images(spec, backend, conditioning, found, rows / count)
    for reward in spec.rewards:
        _reward(reward, spec, backend, found)
    return found


def _backend(spec: Spec) -> Backend:
    kind = spec.backend.declaration.load()
    if getattr(kind, "has_outline", False):
        return spec.backend.build("meta")
    if checkpoints.local_path(spec.backend_config.checkpoint, spec.folder) is None:
        raise UsageError(
            f"{spec.source}: backend '{spec.backend.kind}' can be estimated from its weights alone, and"
            f" {spec.backend_config.checkpoint} is not on disk"
        )
    return spec.backend.build("cpu")


def _adapter(spec: Spec, backend: Backend) -> Adapter | None:
    if not spec.uses_lora:
        return None
    config = spec.backend_config
    with torch.device(backend.device):
        return Adapter(backend.adapted, config.lora, config.lora.targets or config.lora_targets())


def _images(spec: Spec, backend: Backend, conditioning: Conditioning, found: Outline, scale: float) -> None:
    """Network and decoder, and the way back through what the optimizer keeps."""
    seeds = list(range(len(conditioning)))

    def measure(name: str, run: Callable[[], Tensor]) -> Tensor:
        gc.collect()
        with tallied() as tally:
            result = run()
        found.activations[name] = round(tally.peak * scale)
        found.operations[name] = tally.operations / len(seeds)
        return result

    if "denoiser" not in spec.backend.provides():
        with torch.no_grad():
            measure("network call", lambda: backend.generate(conditioning, seeds))
        found.operations["decoder"] = 0.0
        if spec.keeps != "nothing":
            found.unknown.append("the backward pass of an autoregressive model")
        return
    noise = backend.noise(seeds)
    denoiser = backend.denoiser(conditioning)
    time = float(denoiser.path.t_start)
    with torch.no_grad():
        clean = measure("network call", lambda: denoiser(noise, time).x0)
        measure("decoder", lambda: backend.decode(clean))
        if backend.drafts:  # memory as the evaluation needs it, operations as the steps do
            with backend.drafting():
                measure("draft decoder", lambda: backend.decode(clean))
            found.operations["decoder"] = found.operations.pop("draft decoder")
        if spec.sampler and spec.sampler_config.evaluations() <= SHORT:
            sampler, operations = spec.sampler.build("cpu"), dict(found.operations)
            try:  # it may ask for several rows an image
                measure("sampler", lambda: sampler.sample(denoiser, noise, seeds))
            except (NotImplementedError, RuntimeError):  # it looks at values, which only a real model has
                found.unknown.append(f"what sampler '{spec.sampler.kind}' holds beside a network call")
            found.operations = operations
    keeps = spec.keeps
    if keeps == "nothing":
        return
    calls = spec.optimizer_config.calls_kept(spec.sampler_config.evaluations()) if keeps == "image" else 1
    if calls is None:
        found.unknown.append("network calls before the last one, where the optimizer keeps more than one")
    operations = dict(found.operations)

    def back() -> Tensor:
        clean = noise.clone().requires_grad_()
        for _ in range(calls or 1):
            clean = denoiser(clean, time).x0
        with backend.drafting():
            result = backend.decode(clean) if keeps == "image" else clean
        result.sum().backward()
        return result.detach()

    with torch.enable_grad():
        measure("backward pass", back)
    found.operations = operations


def _reward(chosen: ChosenReward, spec: Spec, backend: Backend, found: Outline) -> None:
    """Weights and activations of a reward whose weights are here."""
    reward: Reward | None = None
    places = [
        getattr(chosen.config, name)
        for name, options in type(chosen.config).model_fields.items()
        if CHECKPOINT in options.metadata and getattr(chosen.config, name)
    ]
    if all(checkpoints.local_path(place, spec.folder) for place in places[:1]):
        reward = chosen.build("cpu")
    if reward is None or reward.per_prompt or reward.elsewhere or "reference" in chosen.provides():
        if reward is None:
            found.unknown.append(f"reward '{chosen.name}': {places[0]} is not on disk")
        return
    count = min(FEW, found.rows)
    size = found.image_size
    with_gradients = spec.keeps == "image" and chosen.mix.weight != 0
    pictures = torch.rand(count, 3, *size, requires_grad=with_gradients)
    prompts = (spec.training_prompts() * count)[:count]
    with blaming(reward.label):
        with torch.no_grad():
            reward.score(pictures.detach(), prompts)  # loads
        gc.collect()
        with torch.set_grad_enabled(with_gradients), tallied() as tally:
            scores = reward.score(pictures, prompts)
            if with_gradients:
                scores.sum().backward()
    networks = [value for value in vars(reward).values() if isinstance(value, torch.nn.Module)]
    weights = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())
    if weights:
        found.weights[f"reward {chosen.name}"] = weights
    at_once = getattr(chosen.config, "micro_batch", None) or found.rows
    taken = tally.peak * min(at_once, found.rows) // count
    found.activations["rewards"] = max(found.activations.get("rewards", 0), taken)
    if with_gradients:  # its graph lives together with that of the image
        found.activations["backward pass"] += taken
    found.operations["rewards"] = found.operations.get("rewards", 0.0) + tally.operations / count
