"""DAV as its published code does it: a tree search, one trajectory at a time, and its loss. Kept to compare with.

It differs from ``e_step`` and ``m_step`` in the ways that docs/dav.md lists; the one that matters most: after every
expansion it walks to the child with the largest sum of rewards below it. With positive rewards that is the child just
expanded, which was drawn by importance; with negative ones it is the best of the others, and nothing is drawn any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2ialign import Prediction, StepSampler
from t2ialign.tensors.gaussian import log_prob
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_dav.e_step import Trajectories
from t2ialign_dav.m_step import Losses, Objective, Policy
from t2ialign_dav.model import Draws, Model


@dataclass(eq=False)
class Node:
    """A latent of the tree.

    Attributes:
        x: (1, *latent).
        step: position on the time grid; -1 is the empty root.
        reward: of its clean estimate (1,).
        log_prob: under the policy, where it would be without guidance (1,).
        log_prob_reference: where it is (1,).
        total: rewards of this node and of all below it (1,).
    """

    x: Tensor
    step: int
    reward: Tensor
    log_prob: Tensor
    log_prob_reference: Tensor
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros_like(self.reward)
        node: Node | None = self
        while node is not None:
            node.total = node.total + self.reward
            node = node.parent
        if self.parent is not None:
            self.parent.children.append(self)


class TreeSearch:
    """One trajectory's search."""

    def __init__(
        self,
        model: Model,
        sampler: StepSampler,
        draws: Draws,
        alpha: float,
        gamma: float,
        particles: int,
        initial: int = 1,
        guided: bool = False,
    ) -> None:
        """
        Args:
            model: bound to one trajectory.
            sampler: whose every step has noise.
        """
        self.model, self.sampler, self.draws = model, sampler, draws
        self.alpha, self.gamma, self.particles, self.initial, self.guided = alpha, gamma, particles, initial, guided

    @torch.no_grad()
    def run(self) -> Trajectories:
        """T + 1 times: descend to a leaf, expand it, and walk to the child with the largest total."""
        noise = self.draws.initial(self.initial)[0]
        self.times = self.sampler.times(self.model.path).to(noise.device)
        steps = len(self.times) - 1
        zero = noise.new_zeros(1)
        root = Node(noise[:1], -1, zero, zero, zero)
        for x in self.model.path.prior(noise, self.times[0]).split(1):
            Node(x, 0, self.evaluate(x, 0), zero, zero, root)

        visited: list[Node] = []
        for iteration in range(steps + 1):
            self.expand(self.select(root, iteration), iteration)
            root = root.children[int(torch.stack([child.total for child in root.children]).argmax())]
            visited.append(root)
        latents = torch.stack([node.x for node in visited], 1)
        ratio = torch.stack([node.log_prob - node.log_prob_reference for node in visited[1:]]).sum(0)
        return Trajectories(latents, latents[:, 1:], self.model.images(root.x), {"log_ratio": ratio})

    def select(self, root: Node, iteration: int) -> Node:
        """Descend by importance to a node without children; the last noisy node is as far as it goes."""
        node = root
        while node.children and node.step != len(self.times) - 2:
            probabilities = self.probabilities(node)
            key = f"{iteration}.{node.step}"
            node = node.children[int(self.draws.choose(key, probabilities))]
        return node

    def probabilities(self, node: Node) -> Tensor:
        """Of drawing each child, (1, children)."""
        rewards, log_probs, references = (
            torch.cat([getattr(child, name) for child in node.children])
            for name in ("reward", "log_prob", "log_prob_reference")
        )
        return torch.softmax(log_weights(rewards, references - log_probs, self.tilt(node)), 0)[None]

    def tilt(self, node: Node) -> float:
        return self.gamma ** (len(self.times) - 1 - max(node.step, 0)) / self.alpha

    def expand(self, node: Node, iteration: int) -> None:
        """Add M children: M + 2 forwards, of which one repeats the first."""
        t, s = self.times[node.step : node.step + 2]
        path, x = self.model.path, node.x
        if self.guided:
            gradient, prediction = self.model.value_gradient(x, t)
        else:
            gradient, prediction = torch.zeros_like(x), self._predict(x, t)
        mean, std = self.sampler.transition(path, x, prediction, t, s)
        free = mean + std * self.draws.noise(iteration, self.particles)[0]
        children = free + ancestral_variance(path, t, s) * gradient * self.tilt(node)
        reference, _ = self.sampler.transition(path, x, self._predict(x, t), t, s)
        log_probs, references = log_prob(free, mean, std), log_prob(children, reference, std)
        for child, log_density, log_reference in zip(
            children.split(1), log_probs.split(1), references.split(1), strict=True
        ):
            Node(child, node.step + 1, self.evaluate(child, node.step + 1), log_density, log_reference, node)

    def evaluate(self, x: Tensor, step: int) -> Tensor:
        """Reward (1,) of the clean estimate at x; also at the end, where the latent itself would do."""
        return self.model.value(self._predict(x, self.times[step]).x0[None])[0]

    def _predict(self, x: Tensor, t: Tensor) -> Prediction:
        x0, eps = self.model.predict(x[None], t)
        return Prediction(x0[0], eps[0])


def search_one_by_one(model: Model, draws: Draws, search: Callable[[Model, Draws], TreeSearch]) -> Trajectories:
    """Every trajectory of the model, each with a tree of its own."""
    found = [search(model.rows([row]), draws.rows([row])).run() for row in range(len(draws.seeds))]
    diagnostics = {name: torch.cat([part.diagnostics[name] for part in found]) for name in found[0].diagnostics}
    latents, targets, images = (
        torch.cat([getattr(part, name) for part in found]) for name in ("latents", "targets", "images")
    )
    return Trajectories(latents, targets, images, diagnostics)


def log_weights(rewards: Tensor, log_ratio: Tensor, tilt: float) -> Tensor:
    """Importance log-weights (K,), the largest of them 0."""
    log_w = rewards.nan_to_num() * tilt + log_ratio
    return log_w - log_w.max()


def ancestral_variance(path: DiffusionPath, t: Tensor, s: Tensor) -> Tensor:
    """Variance of DDIM's step with eta = 1; the published shift uses it whatever eta is."""
    return path.sigma(s) ** 2 * (1 - (path.alpha(t) * path.sigma(s) / (path.alpha(s) * path.sigma(t))) ** 2)


def published_loss(policy: Policy, reference: Prediction | None, train_kl: float) -> Objective:
    """-log pi_theta + train_kl mean (eps_theta - eps_0)^2, with guided noise predictions and no weights."""

    def losses(rows: Tensor) -> Losses:
        prediction = policy.predict(rows)
        mle = -log_prob(policy.buffer.target[rows], *policy.transition(rows, prediction))
        kl = torch.zeros_like(mle)
        if reference is not None:
            kl = (prediction.eps - reference.eps[rows]).square().flatten(1).mean(1)
        return Losses(mle + train_kl * kl, mle, kl)

    return losses


def in_order(trajectories: int, steps: int, accumulation: int, fraction: float) -> Iterator[Tensor]:
    """Buffer rows as they were found: the first, noisiest part of every trajectory, some trajectories per update."""
    rows = torch.arange(trajectories * steps).view(trajectories, steps)[:, : max(1, int(steps * fraction))]
    return (part.flatten() for part in rows.split(accumulation))
