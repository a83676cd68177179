"""The contract of backends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_loras
from t2ialign.parts.backend import Backend, BackendInfo
from t2ialign.parts.sampler import Sampler
from t2ialign.tensors import seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.testing import toy
from t2ialign.testing.contract import Contract, check_images, check_tensor, close, no_ambient_draws

PROMPTS = ("a red circle", "a blue square", "a green triangle")
SEEDS = (11, 12, 13)
#: Of images drawn in other batches or with a re-loaded LoRA, by the network's dtype.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}


class BackendContract(Contract):
    """See ``check_backend``."""

    def __init__(
        self,
        backend: Backend,
        prompts: Sequence[str] = PROMPTS,
        sampler: Sampler | None = None,
        differentiable: bool = False,
    ) -> None:
        self.backend, self.name = backend, type(backend).__name__
        self.prompts, self.seeds = list(prompts), [SEEDS[0] + row for row in range(len(prompts))]
        self.sampler, self.differentiable = sampler, differentiable
        self.tolerance = TOLERANCE[backend.config.dtype]
        self.diffusion = getattr(backend, "info", None) is not None and backend.info.family == "diffusion"
        if self.diffusion and sampler is None:
            self.sampler = toy.ToySteps(toy.ToySteps.Config(steps=2), backend.device)

    def checks(self) -> list[Callable[[], None]]:
        checks = [self.info, self.frozen, self.rows, self.noise, self.images, self.alone, self.encode, self.matters]
        if self.diffusion:
            checks += [self.denoiser, self.decode]
        if self.differentiable:
            checks.append(self.gradients)
        if self.backend.config.lora.targets or self.backend.config.lora_targets():
            checks.append(self.lora)  # last: it leaves layers behind
        return checks

    def conditioning(self, rows: Sequence[int] | None = None) -> Conditioning:
        whole = self.backend.encode(self.prompts)
        return whole if rows is None else whole[list(rows)]

    @torch.no_grad()
    def generate(self, rows: Sequence[int] | None = None, backend: Backend | None = None) -> Tensor:
        rows = range(len(self.prompts)) if rows is None else rows
        return (backend or self.backend).generate(
            self.conditioning(rows), [self.seeds[row] for row in rows], self.sampler
        )

    def info(self) -> None:
        """It says what it is: family, shape of the noise, size of the images."""
        info = getattr(self.backend, "info", None)
        assert isinstance(info, BackendInfo), f"{self.name}.info is missing; __init__ sets it to a BackendInfo"
        assert info.family in ("diffusion", "autoregressive"), (
            f"{self.name}.info.family is '{info.family}'; it is 'diffusion' or 'autoregressive'"
        )

    def frozen(self) -> None:
        """The network is frozen and in evaluation mode."""
        network = self.backend.trainable
        free = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        assert not free, f"{self.name}.trainable.{free[0]} requires a gradient; a backend's own weights are frozen"
        moody = [m for m in network.modules() if isinstance(m, torch.nn.Dropout) and m.training and m.p > 0]
        assert not moody, f"{self.name}.trainable has dropout in training mode; call eval()"

    def rows(self) -> None:
        """One row of conditioning per prompt."""
        whole = self.conditioning()
        assert isinstance(whole, Conditioning), (
            f"{self.name}.encode returns a {type(whole).__name__}; it returns a Conditioning"
        )
        assert whole.prompts and len(whole) == len(self.prompts), (  # noqa: PT018
            f"{self.name}.encode gives {len(whole)} rows for {len(self.prompts)} prompts; one row per prompt"
        )

    def noise(self) -> None:
        """Noise is decided by each image's own seed."""
        shape = tuple(self.backend.info.latent_shape)
        found = self.backend.noise(self.seeds)
        check_tensor(found, f"{self.name}.noise", (len(self.seeds), *shape), "noise is unit Gaussian float32")
        assert torch.equal(self.backend.noise(self.seeds[1:]), found[1:]), (
            f"{self.name}.noise gives a seed other noise in another batch; draw with t2ialign.seeding.normal"
        )
        assert not torch.equal(found[0], found[1]), f"{self.name}.noise is the same for two seeds; each has its own"

    def images(self) -> None:
        """Images have the promised size and lie in [0, 1], and come out the same again."""
        with no_ambient_draws(f"{self.name}.generate"):
            found = self.generate()
        check_images(found, f"what {self.name}.generate returns", (len(self.seeds), 3, *self.backend.info.image_size))
        assert close(self.generate(), found), (
            f"{self.name}.generate gives other images for the same prompts and seeds; all draws come from the seeds"
        )

    def alone(self) -> None:
        """An image does not depend on its batch."""
        together = self.generate()
        for rows in [[row] for row in range(len(self.seeds))] + [list(range(len(self.seeds)))[::-1]]:
            assert close(self.generate(rows), together[rows], self.tolerance), (
                f"{self.name}.generate gives an image other pixels in another batch; an image depends on its own prompt"
                " and seed, whatever the micro-batch"
            )

    def encode(self) -> None:
        """A prompt draws the same image whatever it was encoded with."""
        images = self.generate()
        for row, prompt in enumerate(self.prompts):
            with torch.no_grad():
                alone = self.backend.generate(self.backend.encode([prompt]), self.seeds[row : row + 1], self.sampler)
            assert close(alone, images[[row]], self.tolerance), (
                f"{self.name} draws '{prompt}' otherwise when it was encoded alone; a row of a Conditioning does not"
                " depend on the others, so mask the padding, or pad to a fixed length"
            )

    def matters(self) -> None:
        """Another prompt or another seed gives another image."""
        conditioning = self.conditioning([0, 1, 0])
        with torch.no_grad():
            images = self.backend.generate(conditioning, [self.seeds[0], self.seeds[0], self.seeds[1]], self.sampler)
        assert not torch.equal(images[0], images[1]), f"{self.name} draws the same image for another prompt"
        assert not torch.equal(images[0], images[2]), f"{self.name} draws the same image from another seed"

    @torch.no_grad()
    def denoiser(self) -> None:
        """The denoiser splits x_t into x0 and eps, for any rows and times."""
        denoiser = self.backend.denoiser(self.conditioning())
        path, noise = denoiser.path, self.backend.noise(self.seeds)
        times = path.times(4)[1:3].to(noise.device)
        t = torch.stack([times[row % 2] for row in range(len(noise))])
        prediction = denoiser(noise, t)
        for what, part in (("x0", prediction.x0), ("eps", prediction.eps)):
            check_tensor(
                part, f"{self.name}'s {what}", tuple(noise.shape), "a denoiser gives float32 (B, *latent_shape)"
            )
        alpha, sigma = (value.view(-1, *(1,) * (noise.ndim - 1)) for value in path.coefficients(t))
        again = alpha * prediction.x0 + sigma * prediction.eps
        assert close(again, noise, 1e-2), (
            f"{self.name}'s denoiser gives an x0 and an eps that are not those of x_t: alpha x0 + sigma eps is off by"
            f" {(again - noise).abs().max().item():.2g}; convert the network's output on the path"
        )
        last = len(noise) - 1
        one = denoiser.rows([last])(noise[[last]], float(t[last]))
        assert close(one.x0, prediction.x0[[last]], self.tolerance), (
            f"{self.name}'s denoiser predicts something else for a row alone; rows(index) is the same model on those"
            " rows, and t may differ from row to row"
        )

    @torch.no_grad()
    def decode(self) -> None:
        """Latents of any scale decode to images in [0, 1], each on its own."""
        latents = 2 * self.backend.noise(self.seeds)
        shape = (len(latents), 3, *self.backend.info.image_size)
        images = check_images(self.backend.decode(latents), f"what {self.name}.decode returns", shape)
        assert close(self.backend.decode(latents[1:2]), images[1:2], self.tolerance), (
            f"{self.name}.decode gives latents other pixels in another batch; every image is decoded on its own"
        )

    def gradients(self) -> None:
        """Gradients flow from the images to the noise."""
        noise = self.backend.noise(self.seeds[:2]).requires_grad_()
        images = self.backend.generate(self.conditioning([0, 1]), self.seeds[:2], self.sampler, noise)
        gradient = torch.autograd.grad(images.sum(), noise, allow_unused=True)[0] if images.requires_grad else None
        assert gradient is not None and bool((gradient != 0).any()), (  # noqa: PT018
            f"{self.name}.generate gives images without a gradient, and it provides 'differentiable'; never detach,"
            " wrap in no_grad or round to 8 bits then"
        )
        assert bool(gradient.isfinite().all()), f"{self.name}.generate has a gradient that is not finite"

    def lora(self) -> None:
        """A LoRA changes the images, and an exported one gives them in a fresh backend."""
        backend, config = self.backend, self.backend.config
        base = self.generate()
        adapter = Adapter(backend.adapted, config.lora, config.lora.targets or config.lora_targets())
        start = {name: parameter.detach().clone() for name, parameter in adapter.parameters().items()}
        assert close(self.generate(), base, self.tolerance), (
            f"{self.name} draws other images as soon as LoRA layers are attached; they start at zero, so a target is"
            " read past its layer"
        )
        changed = {
            name: p + 0.3 * seeding.normal([seeding.derive(0, name)], p.shape, p.device)[0] if "lora_B" in name else p
            for name, p in start.items()
        }
        adapter.load(changed)
        tuned = self.generate()
        assert not close(tuned, base, 1e-6), (
            f"{self.name} draws the same images with a LoRA; its targets {', '.join(adapter.targets)} reach no image"
        )
        fresh = type(backend)(config, backend.device)
        assert close(self.generate(backend=fresh), base, self.tolerance), (
            f"a second {self.name} draws other images than the first; weights come from the checkpoint alone"
        )
        with tempfile.TemporaryDirectory() as folder:
            write_loras(adapter, backend.info.adapter_prefix, Path(folder))
            fresh.load_lora(Path(folder))
        assert close(self.generate(backend=fresh), tuned, self.tolerance), (
            f"{self.name}.load_lora loads a file with which it draws other images than the LoRA that was written; the"
            " strength is folded into the file"
        )
        adapter.load(start)


def check_backend(
    backend: Backend,
    prompts: Sequence[str] = PROMPTS,
    sampler: Sampler | None = None,
    differentiable: bool = False,
) -> None:
    """Check that a backend keeps its contract. It carries LoRA layers of strength zero afterwards.

    Args:
        backend: a loaded backend; one with LoRA targets is loaded a second time.
        prompts: three or more that it understands.
        sampler: what a diffusion model draws with; default: two plain steps on its own time grid.
        differentiable: whether it provides "differentiable".

    Raises:
        AssertionError: one sentence on what is wrong, and what the contract says.
    """
    BackendContract(backend, prompts, sampler, differentiable).hold()
