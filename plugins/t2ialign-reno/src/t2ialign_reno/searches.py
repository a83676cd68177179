"""What a run searches for: images, and for each of them one or more searches from different noises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from t2ialign import seeding


@dataclass(frozen=True)
class Item:
    """One image to deliver.

    Attributes:
        prompt: its text, as rewards see it.
        seed: of its initial noise; the first search starts there, so that the result pairs with the base's image.
        row: its row in the conditioning.
        name: of its files.
    """

    prompt: str
    seed: int
    row: int
    name: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt, self.seed


@dataclass(frozen=True)
class Search:
    """One start of an item; ``seed`` is that of its own initial noise."""

    item: Item
    start: int
    seed: int


@dataclass(frozen=True)
class Found:
    """The best image of a search.

    Attributes:
        seed: to generate with; decides the noise where ``noise`` is None, and a stochastic sampler's draws.
        noise: (*latent_shape), float32; None for backends that have no noise to show.
        reward: the combined reward; -inf before anything was scored.
        iteration: when it was found.
        trajectory: one dict of numbers per iteration.
    """

    search: Search
    seed: int
    noise: Tensor | None
    reward: float
    iteration: int
    trajectory: list[dict[str, float]]


def searches_of(items: Sequence[Item], starts: int, run_seed: int) -> list[Search]:
    """``starts`` searches per item, item-major. The first is at the item's seed, the run's seed decides the others."""

    def seed(item: Item, start: int) -> int:
        return item.seed if start == 0 else seeding.derive(run_seed, "restart", item.prompt, item.seed, start)

    return [Search(item, start, seed(item, start)) for item in items for start in range(starts)]
