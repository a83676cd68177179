"""How far each form of a member's layer is from exact arithmetic in bfloat16, for one large layer and a whole model.

    OMP_NUM_THREADS=1 python tools/bench_precision.py

Layer: W (width, width) and x in bfloat16, LoRA and noise in float32; the error is the distance to the same in float64,
the effect that of the member from the centre. Model: images of the quickstart's members with all weights in bfloat16,
against the same in float32. "alone" is peft's layer with the member's weights set, "batched" what a population uses.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign_eggroll.checks import member_images
from t2ialign_eggroll.noise import LowRank, Members, Noise, Perturbation
from t2ialign_eggroll.population import Chunk, Form, lora_population

A, B = "layer.lora_A.weight", "layer.lora_B.weight"
MEMBERS, ROWS = 8, 32


def layer_errors(width: int, rank: int, noise_rank: int, sigma: float) -> dict[str, float]:
    """Form -> norm of the error over norm of the members' own effect."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"layer": nn.Linear(width, width)})
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"]), network)
    layer = network["layer"]
    base = layer.get_base_layer().bfloat16()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    a.normal_(std=width**-0.5)
    b.normal_(std=0.1)
    x = torch.randn(MEMBERS, ROWS, width).bfloat16()
    drawn = Members(MEMBERS).draw(Noise({A: a.shape, B: b.shape}, noise_rank).of(0, 0), slice(0, MEMBERS))
    noise: dict[str, Perturbation] = {
        name: e.select(torch.arange(MEMBERS), torch.full((MEMBERS,), sigma)) for name, e in drawn.items()
    }
    own_a, own_b = noise[A].added_to(a), noise[B].added_to(b)

    def exact(a: Tensor, b: Tensor) -> Tensor:
        return base_exact + x.double() @ a.double().mT @ b.double().mT

    base_exact = x.double() @ base.weight.double().T + base.bias.double()
    truth = exact(own_a, own_b)
    effect = (truth - exact(a, b)).norm()

    def population(form: Form) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with lora_population({"layer": layer}, noise, Chunk(MEMBERS, ROWS), form):
                return layer(x.flatten(0, 1)).view(truth.shape)

        return run

    def alone() -> Tensor:
        centre = a.data, b.data
        found = []
        for member in range(MEMBERS):
            a.data, b.data = own_a[member], own_b[member]
            found.append(layer(x[member]))
        a.data, b.data = centre
        return torch.stack(found)

    def two_products() -> Tensor:
        """The LoRA's result rounded by itself before it is added."""
        hidden = torch.bmm(x, own_a.bfloat16().mT)
        return base(x) + torch.bmm(hidden, own_b.bfloat16().mT)

    def concatenated() -> Tensor:
        """Centre and noise side by side: [A; v^T] and [B + E_B, (B + E_B) u] for low-rank noise of A."""
        low = noise[A]
        assert isinstance(low, LowRank)
        down = torch.cat([a.expand(MEMBERS, -1, -1), low.v.mT], 1).bfloat16()
        up = torch.cat([own_b, own_b @ low.u], 2).bfloat16()
        return torch.baddbmm(base(x), torch.bmm(x, down.mT), up.mT)

    forms = {
        "alone": alone,
        "batched": population("auto"),
        "factored": population("factored"),
        "one concatenated product": concatenated,
        "two products": two_products,
    }
    return {name: ((run().double() - truth).norm() / effect).item() for name, run in forms.items()}


def model_errors(members: int, images: int, sigma: float) -> tuple[dict[str, float], float]:
    """Form -> mean pixel difference to float32, and that of the members from the centre."""
    found: dict[str, Tensor] = {}
    for dtype in ("float32", "bfloat16"):
        options = [f"backend.dtype='{dtype}'", "run.device='cpu'", f"optimizer.sigma={sigma}"]
        spec = specs.load(Path("specs/quickstart.toml"), options)
        problem = assemble(spec, report=lambda text: None)
        optimizer = load_optimizer(problem)
        optimizer.prepare()
        if dtype == "float32":
            batch = problem.draw(0)
            noise = optimizer.member_noise(0, slice(0, members))
        forms: dict[str, Form | None] = {"alone": None, "batched": "auto", "factored": "factored"}
        for name, form in forms.items():
            drawn = member_images(problem, optimizer.space, noise, Chunk(members, images), batch, form)
            found[f"{name}, {dtype}"] = drawn.float()
    truth = found["alone, float32"]
    centre = truth.mean(0)  # of antithetic members
    errors = {name: (found[f"{name}, bfloat16"] - truth).abs().mean().item() for name in forms}
    apart = (found["alone, bfloat16"] - found["batched, bfloat16"]).abs().mean().item()
    return errors | {"alone from batched": apart}, (truth - centre).abs().mean().item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2240, help="of the layer; 0 leaves it out")
    parser.add_argument("--members", type=int, default=8, help="of the model; 0 leaves it out")
    arguments = parser.parse_args()
    os.environ.setdefault("T2IALIGN_CACHE", tempfile.mkdtemp())
    cases = [(2, 1, 0.01), (16, 1, 0.01), (16, 4, 0.01), (2, 1, 0.001)] if arguments.width else []
    for number, (rank, noise_rank, sigma) in enumerate(cases):
        errors = layer_errors(arguments.width, rank, noise_rank, sigma)
        if number == 0:
            print("| r, k, sigma | " + " | ".join(errors) + " |\n|---" + "|---" * len(errors) + "|")
        print(
            f"| {rank}, {noise_rank}, {sigma} | " + " | ".join(f"{e:.4f}" for e in errors.values()) + " |", flush=True
        )
    for sigma in (0.1, 0.005) if arguments.members else ():
        errors, effect = model_errors(arguments.members, 4, sigma)
        print(f"\nmodel, sigma {sigma}; the members' own effect is {effect:.2e}")
        for name, error in errors.items():
            print(f"{name:28}{error:.2e}  {error / effect:.3f} of the effect", flush=True)


if __name__ == "__main__":
    main()
