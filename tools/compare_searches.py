"""All searches at equal network evaluations on the shapes world: what a learned reward gains, what an exact one sees.

    OMP_NUM_THREADS=1 python tools/compare_searches.py           everything that has no result yet, then the table
    python tools/compare_searches.py --only best-of-n fk --seeds 0
    python tools/compare_searches.py --table                     the table of what is there

Every search optimises the same CLIP reward for the same held-out prompts, and starts at the noise of the base's image;
the exact detector only watches. Two models: a small Stable Diffusion in eight steps, where an image costs eight
evaluations, and its one-step sibling, where it costs one. Evaluations are those of the search, without the last drawing
of the image that it found; gradients are counted beside them.

Every result is a JSON file in the output folder, written when it is measured; a second call does what is missing.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ialign.evaluation.evaluate import base_of, items_of, score, summary_of
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign.spec.model import Spec
from t2ialign.spec.prompts import read
from t2ialign.storage import files

SPECS = Path(__file__).parents[1] / "specs"
SHAPES = "pkg:t2ialign_shapes"
#: Network evaluations of one delivered image, and steps of the model that takes several.
BUDGET, STEPS = 64, 8
#: The images are none that a run of the spec would deliver, which ``generate`` would look up and not search.
OWN_SEEDS = 10_000


@dataclass(frozen=True)
class Search:
    """Overrides of ``specs/reno-shapes.toml``, images of a search where it counts them, and its gradients."""

    optimizer: str
    sampler: str = "one-step"
    images: int = 1
    gradients: int = 0
    note: str = ""


def steps(eta: float) -> str:
    return f"ddim {eta:g}"


SEARCHES = {
    "best-of-n": Search("kind='image-select'", steps(1), BUDGET // STEPS),
    "fk": Search(f"kind='fk-steering', particles={BUDGET // STEPS}, lmbda=2.0", steps(1)),
    "evo": Search(
        "kind='evo-search', evolution_schedule=[0, 4], population_size_schedule=[4, 3, 2], elite_size=1", steps(1)
    ),
    "dav": Search("kind='dav-search', particles=7, alpha=0.05", steps(1), gradients=STEPS),
    "zero-order": Search("kind='zero-order', neighbours=3", steps(0), BUDGET // STEPS),
    "image-select (one step)": Search("kind='image-select'", images=BUDGET),
    "zero-order (one step)": Search("kind='zero-order'", images=BUDGET),
    "evo (one step)": Search("kind='evo-search', population_size_schedule=[16, 15, 15, 15, 15]"),
    "reno (one step)": Search("kind='reno'", images=BUDGET, gradients=BUDGET - 1),
}


def spec_of(search: Search, seed: int, prompts: Path) -> Spec:
    kind, _, eta = search.sampler.partition(" ")
    model = "kind='sd15', checkpoint='{}/checkpoints/sd', guidance_scale=1.0" if eta else "kind='sd-turbo', {}"
    model = model.format(SHAPES if eta else f"checkpoint='{SHAPES}/checkpoints/sd-turbo'")
    sampler = f"kind='ddim', steps={STEPS}, eta={float(eta)}" if eta else f"kind='{kind}'"
    rewards = (
        f"{{kind='clipscore', model='{SHAPES}/checkpoints/clip', name='clip'}},"
        " {kind='shapes-exact', weight=0.0}, {kind='shapes-graded', weight=0.0}"
    )
    overrides = [
        f"backend={{{model}, dtype='float32'}}",
        f"sampler={{{sampler}}}",
        f"optimizer={{{search.optimizer}}}",
        f"reward=[{rewards}]",
        f"run.seed={seed}",
        f"run.steps={search.images}",
        f"prompts={{file={json.dumps(str(prompts))}, per_step=64}}",
        f"evaluation={{seed={seed}, save_images=false}}",
    ]
    return specs.load(SPECS / "reno-shapes.toml", overrides)


def evaluations(spec: Spec, search: Search) -> int:
    """Of one delivered image, without gradients."""
    plan = spec.optimizer_config.plan(spec)
    return (plan.evaluations or spec.sampler_config.evaluations()) * search.images


def measure(name: str, seed: int, prompts: Path, folder: Path) -> str:
    path = result_file(folder, name, seed)
    if path.exists():
        return f"{name}, seed {seed}: is there"
    search = SEARCHES[name]
    spec = spec_of(search, seed, prompts)
    problem = assemble(spec)
    optimizer, wanted = load_optimizer(problem), items_of(problem.evaluation_prompts, 1, OWN_SEEDS + seed)
    base = score(problem, {"base": base_of(problem)}, wanted)["base"]
    started = time.process_time()
    found = optimizer.generate(problem.encode(wanted.prompts), wanted.seeds)
    seconds = time.process_time() - started
    rows = {(prompt, one): image for prompt, one, image in zip(wanted.prompts, wanted.seeds, found, strict=True)}

    def drawn(conditioning: Any, seeds: Sequence[int]) -> Any:
        import torch

        return torch.stack([rows[key] for key in zip(conditioning.prompts, seeds, strict=True)])

    tuned = score(problem, {"tuned": drawn}, wanted)["tuned"]
    result = {
        "search": name,
        "seed": seed,
        "evaluations": evaluations(spec, search),
        "gradients": search.gradients,
        "seconds_per_image": seconds / len(found),
        "images": len(found),
        "summary": summary_of(problem, {"base": base, "tuned": tuned}, wanted),
    }
    files.write_json(path, result)
    return f"{name}, seed {seed}: {seconds:.0f} CPU seconds"


def result_file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{re.sub(r'[^a-z-]+', '-', name).strip('-')}-{seed}.json"


def table(folder: Path, seeds: Sequence[int]) -> list[str]:
    """Rows of Markdown; means over seeds, and the standard error of each from the seeds' own."""
    head = [
        "| search | model | evaluations | gradients | CPU s per image | seeds | CLIP | exact, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *filter(None, (_row(name, folder, seeds) for name in SEARCHES))]


def _row(name: str, folder: Path, seeds: Sequence[int]) -> str:
    paths = [result_file(folder, name, seed) for seed in seeds]
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not found:
        return ""
    count = len(found)

    def mean(reward: str) -> tuple[float, float, float]:
        pairs = [one["summary"]["paired"]["tuned"][reward] for one in found]
        base = sum(one["summary"]["variants"]["base"][reward]["mean"] for one in found) / count
        error = sum(pair["se"] ** 2 for pair in pairs) ** 0.5 / count
        return base, sum(pair["difference"] for pair in pairs) / count, error

    (clip, more, error), (exact, better, exact_error) = mean("clip"), mean("shapes-exact")
    seconds = sum(one["seconds_per_image"] for one in found) / count
    model = "sd-turbo, 1 step" if SEARCHES[name].sampler == "one-step" else f"sd, {STEPS} steps"
    return (
        f"| {name.partition(' (')[0]} | {model} | {found[0]['evaluations']} | {found[0]['gradients']} | {seconds:.2f} |"
        f" {count} | {clip:.2f} → {clip + more:.2f} (**{more:+.2f}** ± {error:.2f}) |"
        f" {100 * exact:.1f} → {100 * (exact + better):.1f} ({100 * better:+.1f} ± {100 * exact_error:.1f}) |"
    )


def chosen_prompts(count: int, folder: Path) -> Path:
    """Some of the held-out prompts, spread over their file."""
    import t2ialign_shapes

    every = read(Path(t2ialign_shapes.__file__).parent / "prompts" / "heldout.txt")
    path = folder / f"prompts-{count}.txt"
    path.write_text("".join(f"{every[i * len(every) // count]}\n" for i in range(count)), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="some of the searches")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts, spread over the file")
    parser.add_argument("--out", type=Path, default=Path("runs/compare-searches"))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        prompts = chosen_prompts(options.prompts, options.out)
        for seed in options.seeds:
            for name in options.only:
                print(measure(name, seed, prompts, options.out), flush=True)
    print("\n".join(table(options.out, options.seeds)))


if __name__ == "__main__":
    main()
