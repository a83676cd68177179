"""Plot truncation error against network evaluations from a checkpoint's evaluation.json.

python tools/plot_solvers.py [--checkpoint FOLDER] [--out docs/images/solver-error.png]
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "plugins/t2ialign-shapes/src/t2ialign_shapes/checkpoints/sd"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "solver-error.png")
    arguments = parser.parse_args()
    figures = json.loads((arguments.checkpoint / "evaluation.json").read_text(encoding="utf-8"))["solvers"]
    plot(figures, arguments.out)


def plot(figures: dict, out: Path) -> None:
    """One panel a schedule, one line a solver, both axes logarithmic."""
    panels = {schedule: list(rows) for schedule, rows in groupby(figures["rows"], lambda row: row["schedule"])}
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 4), sharey=True, layout="constrained")
    for axis, (schedule, rows) in zip(axes, panels.items(), strict=True):
        for solver, points in groupby(rows, lambda row: row["solver"]):
            line = [(row["nfe"], row["median"]) for row in points]
            axis.loglog(*zip(*line, strict=True), marker="o", markersize=4, label=solver)
        axis.set(title=f"schedule: {schedule}", xlabel="network evaluations")
        axis.set_xticks([2, 3, 5, 10, 20, 40], labels=["2", "3", "5", "10", "20", "40"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("median pixel RMSE to 1000 steps")
    axes[-1].legend()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
