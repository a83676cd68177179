"""Recorded key maps of the clients (``tests/golden/clients``): which names each of them takes, and for which weight.

A map is {"weights": [[name, shape], ...], "layouts": [{"pairs": [[up, down], ...], "alpha": suffix or null,
"keys": {prefix: rule}}, ...]}. A rule is ``i`` (the whole weight i), ``[i, dim, start, length]`` (a slice),
``[i, "swap_halves"]``, or ``[[i, n], [j, m], ...]`` (the first n rows to weight i, the next m to j, ...). A file is
read in the one layout that takes most of it; the first pair that is there counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAPS = Path(__file__).parents[1] / "golden" / "clients"


def load(client: str, model: str) -> dict[str, Any]:
    return json.loads((MAPS / f"{client}_{model}.json").read_text())


def layout_of(client: Mapping[str, Any], names: set[str]) -> tuple[Mapping[str, Any], dict[str, list[str]]]:
    """The layout in which the client takes most of a file, and prefix -> the names that it takes."""
    best: tuple[Mapping[str, Any], dict[str, list[str]]] = ({}, {})
    for layout in client["layouts"]:
        found = {}
        for prefix in layout["keys"]:
            pair = next((p for p in layout["pairs"] if prefix + p[0] in names), None)
            if pair:
                alpha = [prefix + layout["alpha"]] if layout["alpha"] and prefix + layout["alpha"] in names else []
                found[prefix] = [prefix + pair[0], prefix + pair[1], *alpha]
        if sum(map(len, found.values())) > sum(map(len, best[1].values())):
            best = layout, found
    return best


def plain(weight: str) -> str:
    """A weight's name without what a client puts around it."""
    for prefix in ("diffusion_model.", "transformer.", "unet.", "flux.", "mmdit."):
        weight = weight.removeprefix(prefix)
    return weight.removesuffix(".weight")


def parts(client: Mapping[str, Any], rule: Any, rows: int) -> list[tuple[str, int, int, int]]:
    """(weight, first row in it, first row of the factor, number of rows) of a rule without swapped halves."""
    weights = client["weights"]
    if isinstance(rule, int):
        return [(weights[rule][0], 0, 0, rows)]
    if isinstance(rule[0], list):
        starts = [sum(n for _, n in rule[:i]) for i in range(len(rule))]
        return [(weights[i][0], 0, start, n) for (i, n), start in zip(rule, starts, strict=True)]
    assert len(rule) == 4, rule
    assert rule[1] == 0
    return [(weights[rule[0]][0], rule[2], 0, rule[3])]


def change(client: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[set[str], dict[str, Tensor]]:
    """What a file does in a client: the names it takes, and weight -> (alpha / r) up down x for a fixed x.

    A full weight would be too large; a product with a random vector tells two of them apart as well.
    """
    shapes = dict(client["weights"])
    layout, found = layout_of(client, set(tensors))
    result: dict[str, Tensor] = {}
    for prefix, (up_name, down_name, *alpha) in found.items():
        up, down = tensors[up_name].flatten(1), tensors[down_name].flatten(1)
        scale = tensors[alpha[0]].item() / len(down) if alpha else 1.0
        moved = scale * (up @ (down @ probe(down.shape[1])))
        for weight, first, start, count in parts(client, layout["keys"][prefix], len(up)):
            rows, *columns = shapes[weight]
            assert torch.Size(columns).numel() == down.shape[1], weight
            assert start + count <= len(up)
            assert first + count <= rows, weight
            whole = result.setdefault(weight, torch.zeros(rows))
            whole[first : first + count] += moved[start : start + count]
    return {name for names in found.values() for name in names}, result


def probe(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size))
