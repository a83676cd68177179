"""Images per second of VAR: with and without key-value cache, and a batched population beside plain inference.

    python tools/bench_var.py                                  # the tiny VAR of t2ialign-shapes
    python tools/bench_var.py --rank 2 --targets proj fc2 head --train B   # with the LoRA of eggroll-var-shapes.toml
    python tools/bench_var.py --depth 8 --width 512            # random weights on the pyramid of the 256 px models
    python tools/bench_var.py --depth 16 --device cuda --dtype bfloat16

In one process, in turns, medians of several rounds; ratios are medians of the rounds' own, with their quartiles:

    cached       the frozen base model
    uncached     the same, all coarser scales computed again at every scale
    population   every image of the batch with its own member's LoRA
    one by one   each member's LoRA set, then its images generated

each up to the accumulated feature map, and to the decoded image. The clock is process CPU time with one CPU thread,
wall time otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from turns import in_turns, ratio

from t2ialign import LoraConfig, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign_eggroll.noise import Members, Noise, Perturbation
from t2ialign_eggroll.population import Chunk, lora_population
from t2ialign_eggroll.spaces import LoraSpace
from t2ialign_var.backend import VarBackend
from t2ialign_var.config import VarConfig
from t2ialign_var.sampling import DrawTokens, Predict, sample_features, with_cache, without_cache
from t2ialign_var.transformer import VarTransformer, released
from t2ialign_var.vqvae import RELEASED, VQVAE

SIGMA = 0.01


@dataclass
class Bench:
    """One workload: ``members`` members with ``images`` images each."""

    transformer: VarTransformer
    vqvae: VQVAE
    members: int
    images: int
    guidance: float
    rank: int
    targets: list[str]
    train: list[str]
    device: torch.device

    def __post_init__(self) -> None:
        self.adapter = Adapter(self.transformer, LoraConfig(rank=self.rank), self.targets)
        self.space = LoraSpace(self.adapter, self.train)
        shapes = {name: p.shape for name, p in self.space.parameters.items()}
        self.sigma = dict.fromkeys(shapes, SIGMA)
        self.draw = Noise(shapes, 1).of(0, 0, self.device)
        self.labels = torch.arange(self.images, device=self.device) % self.transformer.classes
        self.noise = seeding.normal(range(self.images), (sum(self.transformer.tokens),), self.device)

    def generate(self, copies: int, decode: bool, predictor: Callable[..., Predict] = with_cache) -> Tensor:
        choose = DrawTokens(self.vqvae.quantize, self.noise.repeat(copies, 1), 0, 1.0)
        labels = self.labels.repeat(copies)
        features = sample_features(self.transformer, self.vqvae.quantize, labels, self.guidance, choose, predictor)
        return self.vqvae.decode(features) if decode else features

    def plain(self, decode: bool, predictor: Callable[..., Predict]) -> None:
        with self.adapter.disabled():
            self.generate(self.members, decode, predictor)

    def perturbations(self, members: slice) -> Mapping[str, Perturbation]:
        return Members(self.members).draw(self.draw, members, self.device, self.sigma)

    def population(self, decode: bool) -> None:
        noise = self.perturbations(slice(0, self.members))
        with lora_population(self.adapter.layers, noise, Chunk(self.members, self.images), "auto"):
            self.generate(self.members, decode)

    def one_by_one(self, decode: bool) -> None:
        for member in range(self.members):
            with self.space.member(self.perturbations(slice(member, member + 1))):
                self.generate(1, decode)


def random_models(depth: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[VarTransformer, VQVAE]:
    """A transformer of any size, and the released VQVAE, with random weights."""
    sizes = released(16) | {"depth": depth, "width": width, "heads": width // 64}
    torch.manual_seed(0)
    transformer, vqvae = VarTransformer(**sizes), VQVAE(sizes["patch_nums"], **RELEASED)
    for module in (transformer, vqvae):
        module.to(device).eval().requires_grad_(False)
        for name, parameter in module.named_parameters():
            if name.startswith(module.half_precision):
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers():
            if name.startswith(module.half_precision):
                buffer.data = buffer.data.to(dtype)
    for p in nn.ModuleList([transformer.class_emb, transformer.lvl_embed]).parameters():
        p.data.mul_(0.02)
    return transformer, vqvae


@torch.no_grad()
def measure(bench: Bench, stages: list[str], rounds: int, others: bool) -> None:
    """Print one line per stage; ``others``: the uncached model and the loop over members, too."""
    total = bench.members * bench.images
    print(f"{total} images: {bench.members} members x {bench.images}, rank {bench.rank}; images/s")
    names = ["cached", "population", *(["uncached", "one by one"] if others else [])]
    ratios = {"pop/plain": ("population", "cached")}
    if others:
        ratios |= {"cache gain": ("cached", "uncached"), "pop/single": ("population", "one by one")}
    heads = "".join(f"{name:>20}" for name in ratios) + "    best"
    print(f"{'':10}" + "".join(f"{name:>12}" for name in names) + heads)
    for stage in stages:
        decode = stage == "images"
        runs: dict[str, Callable[[], object]] = {
            "cached": partial(bench.plain, decode, with_cache),
            "population": partial(bench.population, decode),
            "uncached": partial(bench.plain, decode, without_cache),
            "one by one": partial(bench.one_by_one, decode),
        }
        runs = {name: runs[name] for name in names}
        in_turns(runs, bench.device, 1)  # warms up
        turns = in_turns(runs, bench.device, rounds)
        speeds = "".join(f"{total / turns.median(name):12.1f}" for name in names)
        cells = "".join(f"{ratio(turns.faster(*pair)):>20}" for pair in ratios.values())
        print(f"{stage:10}{speeds}{cells}{turns.best('population', 'cached'):8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="pkg:t2ialign_shapes/checkpoints/var")
    parser.add_argument("--depth", type=int, help="random weights of this depth instead of a checkpoint")
    parser.add_argument("--width", type=int, help="their width, a multiple of 64; default 64 x depth")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--images", type=int, default=8, help="images per member")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--stages", nargs="+", choices=("features", "images"), default=["features", "images"])
    parser.add_argument("--targets", nargs="+", default=VarConfig().lora_targets(), help="adapted layers")
    parser.add_argument("--train", nargs="+", choices=("A", "B"), default=["A", "B"], help="factors that differ")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-loop", action="store_true", help="only cached and population")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.depth:
        width = arguments.width or 64 * arguments.depth
        models = random_models(arguments.depth, width, device, getattr(torch, arguments.dtype))
    else:
        backend = VarBackend(VarConfig(checkpoint=arguments.checkpoint, dtype=arguments.dtype), device)
        models = backend.transformer, backend.vqvae
    size = (arguments.members, arguments.images, arguments.guidance, arguments.rank)
    bench = Bench(*models, *size, arguments.targets, arguments.train, device)
    measure(bench, arguments.stages, arguments.rounds, not arguments.no_loop)


if __name__ == "__main__":
    main()
