"""The table of docs/memory.md: what models need, and what makes them fit, from configurations alone.

python tools/memory_table.py tests/released
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from t2ialign.cli.running import quiet_libraries
from t2ialign.errors import SpecError, UsageError
from t2ialign.estimate.advice import ladders, usable
from t2ialign.estimate.estimate import Estimate, estimate
from t2ialign.spec import parse as specs

CARDS = (24, 48, 80)
GIB = 2**30
#: Spec -> the folder of its model's configurations.
MODELS = {
    "eggroll-sana-sprint": "Efficient-Large-Model--Sana_Sprint_1.6B_1024px_diffusers",
    "nft-z-image": "Tongyi-MAI--Z-Image",
    "reno-sdxl-turbo": "stabilityai--sdxl-turbo",
    "awm-flux": "black-forest-labs--FLUX.1-dev",
}


def main(released: Path) -> None:
    """One row a spec: weights, text encoders, peak, and the first change that makes it fit each card."""
    print(
        "| spec | micro-batch | weights | text encoders | largest pass | peak | "
        + " | ".join(f"{c} GB" for c in CARDS)
        + " |"
    )
    print("|---|" + "---|" * (5 + len(CARDS)))
    for name, folder in MODELS.items():
        base = [f"backend.checkpoint={json.dumps(str(released / folder))}"]
        first = _estimate(name, base)
        assert first
        found = {}
        for changes in [[], *ladders()]:
            if all(card in found for card in CARDS):
                break
            made = first if not changes else _estimate(name, [*base, *changes])
            for card in CARDS:
                if made and card not in found and made.peak <= usable(card * GIB):
                    found[card] = (changes, made.peak)
        cells = [_cell(*found[card]) if card in found else "no" for card in CARDS]
        weights = sum(n for k, n in first.memory.items() if k.startswith(("network", "decoder")))
        sizes = [weights, first.text, max(first.passes.values()), first.peak]
        print(f"| `{name}` | {first.micro_batch} | " + " | ".join([*map(_gib, sizes), *cells]) + " |", flush=True)
        print(f"<!-- {name}: {first.unknown} -->", file=sys.stderr, flush=True)


def _estimate(name: str, overrides: list[str]) -> Estimate | None:
    try:
        return estimate(specs.load(Path("specs") / f"{name}.toml", overrides), on_cpu=False)
    except (SpecError, UsageError) as error:
        print(f"{name} {overrides[1:]}: {error}", file=sys.stderr, flush=True)
        return None


def _gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def _cell(changes: list[str], peak: int) -> str:
    return f"{_gib(peak)}: " + ("as it is" if not changes else "`" + "`, `".join(changes) + "`")


if __name__ == "__main__":
    quiet_libraries()
    main(Path(sys.argv[1]).resolve())
