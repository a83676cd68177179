"""All methods of the toolkit on one small model: at equal numbers of generated images, and at equal CPU time.

    OMP_NUM_THREADS=1 python tools/compare_methods.py          everything that has no result yet, then the tables
    python tools/compare_methods.py --only nft draft --seeds 0 1 2
    python tools/compare_methods.py --tables                   the tables of what is there

All optimise the same CLIP reward on the same training prompts, and are evaluated on held-out ones at shared seeds; the
exact detector only watches. A method that trains on goes through both budgets in one run and is evaluated at each. One
whose schedule knows its end ("eggroll", "reno") has a run for each budget. What counts is generated images of training,
and process CPU time of the steps alone: no loading, no evaluation.

Every result is a JSON file in the output folder, written when it is measured; a second call does what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from t2ialign.evaluation.evaluate import Scores, base_of, items, score, summary_of
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import Problem, assemble
from t2ialign.spec import parse as specs
from t2ialign.storage import files
from t2ialign.storage.tensor_files import write_tensors

SPECS = Path(__file__).parents[1] / "specs"
BUDGETS = ("images", "seconds")
#: Budgets of CPU time after which a method that has not come to its budget of images is left out of that table.
MOST = 3


@dataclass(frozen=True)
class Method:
    """A spec, what is changed in it, and whether its course depends on where it ends."""

    spec: str
    overrides: tuple[str, ...] = ()
    scheduled: bool = False
    note: str = ""


#: The rewards, and the prompts, of the methods that come from specs with others.
CLIP = "{kind='clipscore', model='pkg:t2ialign_shapes/checkpoints/clip', name='clip'}"
WATCH = (
    "{kind='shapes-exact', weight=0.0}, {kind='shapes-graded', weight=0.0}, {kind='clip-diversity',"
    " model='pkg:t2ialign_shapes/checkpoints/clip', name='diversity', weight=0.0}"
)
REWARDS = f"reward=[{CLIP}, {WATCH}]"
METHODS = {
    "nft": Method("nft-shapes.toml"),
    "awm": Method("awm-shapes.toml"),
    "online-dpo": Method(
        "nft-shapes.toml", ("optimizer={kind='online-dpo', beta=500.0, learning_rate=1e-3, times=8, grid=20}",)
    ),
    "flow-grpo": Method("flow-grpo-shapes.toml"),
    "draft": Method("draft-shapes.toml"),
    "dav": Method("dav-shapes.toml", ("prompts.per_step=8",)),
    "eggroll": Method(
        "nft-shapes.toml",
        (
            "optimizer={kind='eggroll', population=16, sigma=0.1, learning_rate=0.2, noise_rank=1}",
            "backend.lora={rank=2, init='activations'}",
            "prompts.per_step=8",
            "prompts.images_per_prompt=1",
        ),
        scheduled=True,
    ),
    "ppo-epd": Method(
        "ppo-epd-shapes.toml",
        ("backend.guidance_scale=1.0", "optimizer.validate_every=1000"),
        note="three steps of two parallel probes; it trains the solver, not the network",
    ),
    "reno": Method(
        "reno-shapes.toml",
        ("backend={kind='sd-turbo', checkpoint='pkg:t2ialign_shapes/checkpoints/sd-turbo', dtype='float32'}",),
        scheduled=True,
        note="one step of sd-turbo; it searches the noise of every evaluated image, and its images are those",
    ),
}


def spec_of(method: Method, seed: int, steps: int, limit: int | None, per_prompt: int) -> Any:
    """The method's spec at the comparison's rewards and evaluation."""
    common = [REWARDS, f"run.seed={seed}", f"run.steps={steps}", "samples.every=0"]
    evaluation = f"prompts='pkg:t2ialign_shapes/prompts/heldout.txt', images_per_prompt={per_prompt}, every=0"
    common.append(f"evaluation={{{evaluation}, save_images=false{f', limit={limit}' if limit else ''}}}")
    if method.spec.startswith("reno"):
        common.append(f"prompts.images_per_prompt={per_prompt}")
    overrides = list(method.overrides)
    return specs.load(SPECS / method.spec, [*overrides, *common])


def base_scores(problem: Problem, folder: Path) -> Scores:
    """What the frozen model draws, once for all methods on the same model and sampler."""
    spec = problem.spec
    words = [spec.backend_config.model_dump(exclude={"lora"}), spec.backend.kind, spec.sampler_config.model_dump()]
    words += [spec.sampler.kind if spec.sampler else "", spec.evaluation.model_dump()]
    name = hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode()).hexdigest()[:12]
    path = folder / f"base-{name}.safetensors"
    if not path.exists():
        found = score(problem, {"base": base_of(problem)}, items(problem))["base"]
        write_tensors(path, {key: values.contiguous() for key, values in found.items()})
    return load_file(path)


def measure(
    name: str, seed: int, budgets: dict[str, float], folder: Path, limit: int | None, per_prompt: int
) -> Iterator[str]:
    """Train, and write the result at every budget that has none; says what was done."""
    method = METHODS[name]
    missing = {b: size for b, size in budgets.items() if not result_file(folder, name, seed, b, budgets).exists()}
    if not missing:
        return
    plan = _plan(method, seed, limit, per_prompt)
    seconds_per_step: float | None = None
    runs = [{budget: size} for budget, size in missing.items()] if method.scheduled else [missing]
    for goals in runs:
        steps = max(1, round(budgets["images"] / plan.images_per_step))
        if method.scheduled and "seconds" in goals:
            seconds_per_step = seconds_per_step or _pace(folder, name, seed, budgets)
            steps = max(1, round(goals["seconds"] / seconds_per_step))
        if method.spec.startswith("reno"):
            rounds = plan.steps  # of one iteration each
            steps = max(2, steps // rounds)
        spec = spec_of(method, seed, steps, limit, per_prompt)
        problem = assemble(spec)
        optimizer = load_optimizer(problem)
        base = base_scores(problem, folder)
        own, used, images, index = spec.optimizer_config.plan(spec), 0.0, 0, 0
        left = dict(goals)
        while left:
            started = time.process_time()
            optimizer.step(index)
            optimizer.after_step(index)
            used, images, index = used + time.process_time() - started, images + own.images_per_step, index + 1
            done = {"images": float(images), "seconds": used}
            ended = method.scheduled and index == own.steps
            reached = [b for b, size in left.items() if ended or (not method.scheduled and done[b] >= size)]
            if not reached and used > MOST * budgets["seconds"]:
                yield f"{name}, seed {seed}: left at {images} images and {used:.0f} CPU seconds"
                break
            if reached:
                tuned = score(problem, {"tuned": optimizer.generate}, items(problem))["tuned"]
                summary = summary_of(problem, {"base": base, "tuned": tuned}, items(problem))
                cost = {"images": images, "seconds": used, "steps": index}
                for budget in reached:
                    path = result_file(folder, name, seed, budget, budgets)
                    files.write_json(path, {"method": name, "seed": seed, **cost, "summary": summary})
                    left.pop(budget)
                yield f"{name}, seed {seed}: {images} images, {used:.0f} CPU seconds"


def _plan(method: Method, seed: int, limit: int | None, per_prompt: int) -> Any:
    spec = spec_of(method, seed, 1, limit, per_prompt)
    return spec.optimizer_config.plan(spec)


def _pace(folder: Path, name: str, seed: int, budgets: dict[str, float]) -> float:
    """CPU seconds of a step, from the run that has the images' budget."""
    path = result_file(folder, name, seed, "images", budgets)
    if not path.exists():
        raise SystemExit(f"{name}: measure the budget of images first")
    known = json.loads(path.read_text())
    return float(known["seconds"] / known["steps"])


def result_file(folder: Path, name: str, seed: int, budget: str, budgets: dict[str, float]) -> Path:
    return folder / f"{name}-{seed}-{budget}-{budgets[budget]:g}.json"


def table(folder: Path, budget: str, budgets: dict[str, float], seeds: Sequence[int]) -> list[str]:
    """Rows of Markdown, the largest gain in CLIP first. Several seeds: means, and the mean of their standard errors."""
    lines = []
    for name in METHODS:
        paths = [result_file(folder, name, seed, budget, budgets) for seed in seeds]
        found = [json.loads(path.read_text()) for path in paths if path.exists()]
        if found:
            lines.append((_mean(found, "clip")[1], _row(name, found)))
    head = [
        "| method | seeds | images | CPU s | CLIP | exact, % | diversity kept | drift |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *(line for _, line in sorted(lines, reverse=True))]


def _mean(found: Sequence[dict[str, Any]], reward: str) -> tuple[float, float, float, float]:
    """Base, difference, its standard error, tuned."""
    pairs = [one["summary"]["paired"]["tuned"][reward] for one in found]
    bases = [one["summary"]["variants"]["base"][reward]["mean"] for one in found]
    differences, errors = ([pair[key] for pair in pairs] for key in ("difference", "se"))
    base, difference, se = (sum(values) / len(found) for values in (bases, differences, errors))
    return base, difference, se, base + difference


def _row(name: str, found: Sequence[dict[str, Any]]) -> str:
    base, clip, se, tuned = _mean(found, "clip")
    exact_base, exact, exact_se, _ = _mean(found, "shapes-exact")
    kept = _mean(found, "diversity")
    drifts = sorted({alarm["name"] for one in found for alarm in one["summary"]["drift"]})
    images, seconds = (round(sum(one[key] for one in found) / len(found)) for key in ("images", "seconds"))
    return (
        f"| `{name}` | {len(found)} | {images:,} | {seconds} | {base:.2f} → {tuned:.2f} (**{clip:+.3f}** ± {se:.3f}) |"
        f" {100 * exact_base:.1f} → {100 * (exact_base + exact):.1f} ({100 * exact:+.1f} ± {100 * exact_se:.1f}) |"
        f" {100 * kept[3] / kept[0]:.0f} % | {', '.join(drifts) or '-'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="some of the methods")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=1920, help="generated images of training")
    parser.add_argument("--seconds", type=int, default=150, help="CPU seconds of training")
    parser.add_argument("--per-prompt", type=int, default=2, help="images of each held-out prompt in an evaluation")
    parser.add_argument("--limit", type=int, help="held-out prompts in an evaluation; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    budgets = {"images": float(options.images), "seconds": float(options.seconds)}
    if not options.tables:
        for seed in options.seeds:
            for name in options.only:
                for line in measure(name, seed, budgets, options.out, options.limit, options.per_prompt):
                    print(line, flush=True)
    for budget, title in zip(BUDGETS, ("equal numbers of generated images", "equal CPU time"), strict=True):
        print(f"\n{title}\n")
        print("\n".join(table(options.out, budget, budgets, options.seeds)))


if __name__ == "__main__":
    main()
