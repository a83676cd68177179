"""Searched trajectories per second: DAV's lock-step search beside the published tree search, on the same model.

    python tools/bench_dav.py specs/dav-shapes.toml
    python tools/bench_dav.py specs/dav-sd15-aesthetic.toml --rounds 1

One process, one problem, the same prompts and seeds, alternating, best of several rounds; the search alone, with the
value gradient if the spec has it. Both walk a time grid whose every step has noise, as the published search needs. The
clock is process CPU time with one CPU thread, wall time otherwise.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from turns import clock

from t2ialign import plugins
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign_dav.explore import explore

KINDS = {"lock-step": "dav", "published": "dav-upstream"}
#: Options of the [optimizer] table that only one of the two has.
OWN = ("reward_unit", "guidance_cap", "importance_sampling", "target", "weight_cap")


def measure(path: Path, overrides: list[str], rounds: int) -> dict[str, Any]:
    """Seconds and evaluations per trajectory of both searches."""
    spec = specs.load(path, overrides)
    problem = assemble(spec)
    options = {k: v for k, v in spec.optimizer_config.model_dump(exclude_unset=True).items() if k not in OWN}
    searches = {}
    for name, kind in KINDS.items():
        declared = plugins.registry().find("optimizer", kind)
        optimizer = declared.load()(declared.config(**options), problem.device)
        optimizer.setup(problem)
        searches[name] = optimizer.search
    batch = problem.draw(0)
    best = dict.fromkeys(searches, float("inf"))
    costs = {}
    for _ in range(rounds):
        for name, search in searches.items():
            start = clock(problem.device)
            _, costs[name] = explore(problem, search, batch.conditioning, batch.seeds, 1.0, problem.world)
            best[name] = min(best[name], clock(problem.device) - start)
    count = len(batch.seeds)
    return {
        "trajectories": count,
        "particles": spec.optimizer_config.model_dump()["particles"],
        "steps": spec.sampler_config.evaluations(),
        "trajectories_per_second": {name: count / seconds for name, seconds in best.items()},
        "cost": {name: asdict(cost) for name, cost in costs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", type=Path, default=Path("specs/dav-shapes.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the spec")
    parser.add_argument("--grid", default="discrete", help="sampler.schedule; 'native' where its last step has noise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    grid = [f"sampler.schedule='{arguments.grid}'", "sampler.to_zero=false"]
    found = measure(arguments.spec, [*grid, *arguments.set], arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{found['trajectories']} trajectories, {found['steps']} steps, {found['particles']} particles")
    speed = found["trajectories_per_second"]
    print(f"{'search':12}{'trajectories/s':>16}{'forwards':>10}{'decodes':>10}{'backwards':>11}")
    for name, cost in found["cost"].items():
        print(f"{name:12}{speed[name]:16.2f}{cost['forwards']:10}{cost['decodes']:10}{cost['backwards']:11}")
    print(f"{speed['lock-step'] / speed['published']:.1f} times as many")


if __name__ == "__main__":
    main()
