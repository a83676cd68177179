"""HyperNoise (arXiv 2508.09968) as an optimizer: the LoRA is a network that maps noise to better noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from t2ialign import LoraOptimizer, State, StepResult, UsageError, seeding
from t2ialign.problem.mix import RewardMix
from t2ialign.problem.problem import Batch, Problem
from t2ialign.tensors import solver_state
from t2ialign.tensors.accumulation import accumulate
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_reno.objective import RewardGradient, reward_gradient
from t2ialign_search.hyper_noise.config import HyperNoiseConfig
from t2ialign_search.hyper_noise.export import check_network, write_network
from t2ialign_search.hyper_noise.network import NoiseNetwork, start
from t2ialign_search.hyper_noise.objective import losses, warmed

#: Images of a step that are worth a look.
SHOWN = 8


class HyperNoise(LoraOptimizer):
    """Every step refines a batch's noise, draws it with the frozen generator, and follows the reward's gradient."""

    Config = HyperNoiseConfig

    def setup(self, problem: Problem) -> None:
        """
        Raises:
            UsageError: the last layer has no LoRA, or the network adds something to it.
        """
        super().setup(problem)
        config, adapter, lora = self.config, problem.adapter, problem.spec.backend_config.lora
        self.network, self.updates = NoiseNetwork(adapter, config.last_layer), 0
        if lora.start is None:
            seed = problem.spec.run.seed
            start(adapter, lambda path, shape: seeding.normal([seeding.derive(seed, "hyper-noise", path)], shape)[0])
        self.parameters = adapter.parameters()
        self.solver = solver(config.solver, list(self.parameters.values()), config.learning_rate)
        mix = problem.rewards
        self.rewards = [RewardMix([part], mix.drop_nonfinite) for part in mix.rewards if part.mix.weight]
        self.watching = RewardMix([part for part in mix.rewards if not part.mix.weight], mix.drop_nonfinite)
        if lora.start is None and bool((residual := self._first_residual()).any()):
            raise UsageError(
                f"optimizer.last_layer = '{self.network.last}': the network's output does not come from it alone"
                f" (without any change it is {residual.abs().max():.2g} and not 0); name its last projection"
            )

    def step(self, index: int) -> StepResult:
        problem, config, parameters = self.problem, self.config, list(self.parameters.values())
        batch = problem.draw(index)
        seeds = self._noise_seeds(batch, index)
        shown: list[Tensor] = []

        def of(rows: Tensor) -> dict[str, Tensor]:
            place = rows.tolist()
            conditioning, own = batch.conditioning[rows.cpu()], [batch.seeds[row] for row in place]

            def reward(refined: Tensor) -> RewardGradient:
                with self.network.generator():
                    return reward_gradient(
                        lambda z: problem.render(conditioning, own, z), self.rewards, refined, conditioning.prompts
                    )

            noise = problem.backend.noise([seeds[row] for row in place])
            values, found = losses(
                noise, lambda x: self.residual(conditioning, x), reward, config.regulariser, config.regularisation
            )
            shown.append(found.images[: SHOWN - sum(map(len, shown))])
            with torch.no_grad():
                raw = found.raw | self.watching.score(found.images, conditioning.prompts)
            return values | _named(raw)

        names = problem.rewards.names
        wanted = [
            "loss",
            "mean_square",
            "half_sum",
            *(f"{kind}/{name}" for name in names for kind in ("reward", "scored")),
        ]
        with self.network.noise_network():
            means, problem.micro_batch = accumulate(
                parameters, torch.arange(len(batch.seeds)), of, wanted, problem.micro_batch, problem.world
            )
        means["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
        for group in self.solver.param_groups:
            group["lr"] = warmed(config.learning_rate, self.updates, config.warmup)
        if means["gradient_norm"] == means["gradient_norm"] and means["gradient_norm"] != float("inf"):
            self.solver.step()
        self.updates += 1
        counts = {name: means.pop(f"scored/{name}") for name in names}
        rewards = {f"reward/{name}": means.pop(f"reward/{name}") / (counts[name] or 1) for name in names}
        learnt = {f"learn/{name}": mean for name, mean in means.items()}
        return StepResult({name: mean for name, mean in rewards.items() if counts[name[7:]]} | learnt, torch.cat(shown))

    def residual(self, conditioning: Conditioning, noise: Tensor) -> Tensor:
        """Delta (B, *latent) in one pass, inside ``noise_network``; gradients flow."""
        denoiser = self.problem.backend.denoiser(conditioning)
        start_time = torch.tensor(denoiser.path.t_start, device=noise.device)
        return denoiser.output(denoiser.path.prior(noise, start_time), start_time)

    @torch.no_grad()
    def refined(self, conditioning: Conditioning, noise: Tensor) -> Tensor:
        """Better noise (B, *latent), in micro-batches."""

        def run(size: int) -> Tensor:
            parts = [self.residual(conditioning[rows], noise[rows]) for rows in split(len(noise), size)]
            return noise + torch.cat(parts)

        with self.delivered(), self.network.noise_network():
            return self.problem.retrying(run)

    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        noise = self.refined(conditioning, self.problem.backend.noise(seeds))
        with self.network.generator():
            return self.problem.generate(conditioning, seeds, noise)

    def _noise_seeds(self, batch: Batch, index: int) -> list[int]:
        """One per image."""
        run = self.problem.spec.run.seed
        match self.config.noise:
            case "fresh":
                return batch.seeds
            case "shared":
                return [seeding.derive(run, "hyper-noise-shared", index)] * len(batch.seeds)
        return [seeding.derive(run, "hyper-noise-one")] * len(batch.seeds)

    @torch.no_grad()
    def _first_residual(self) -> Tensor:
        try:
            with self.network.noise_network():
                return self.residual(self.problem.conditioning[[0]], self.problem.backend.noise([0]))
        except TypeError as error:
            raise UsageError(f"backend.kind = '{self.problem.spec.backend.kind}': {error}") from error

    def state(self) -> State:
        state = super().state()
        state.tensors |= solver_state.pack(self.solver, self.parameters)
        state.values["updates"] = self.updates
        return state

    def load_state(self, state: State) -> None:
        super().load_state(state)
        solver_state.unpack(self.solver, self.parameters, state.tensors)
        self.updates = state.values["updates"]

    def export(self, folder: Path) -> None:
        with self.delivered():
            write_network(self.problem, self.network.last, folder)

    def check(self, folder: Path) -> str:
        with self.delivered():
            return check_network(self.problem, self.network.last, folder)


def solver(kind: str, parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """SGD with the published momentum, or AdamW with the published decay."""
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)


def _named(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of scores, and which of them are numbers."""
    scores = {f"reward/{name}": values.nan_to_num(0, 0, 0) for name, values in raw.items()}
    return scores | {f"scored/{name}": values.isfinite().float() for name, values in raw.items()}
