"""The end of a run: what it made is written first and checked second, and no failure keeps the rest from following."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ialign.errors import ExportError, T2IAlignError, Unchanged
from t2ialign.evaluation.evaluate import evaluate
from t2ialign.problem.export import CHECKED
from t2ialign.problem.optimizer import Optimizer
from t2ialign.problem.problem import Problem
from t2ialign.publish import card as cards
from t2ialign.ranks.world import PeerFailed
from t2ialign.report import page as report
from t2ialign.run.display import Display
from t2ialign.run.failures import Interrupted, keep_tracebacks, told
from t2ialign.spec.model import Chosen
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

UNCHECKED = "UNCHECKED.txt"


class Unfinished(T2IAlignError):
    """Something at the end of a run failed; everything else was done. All ranks raise it together."""

    agreed = True


def finish(
    run: RunDir, problem: Problem, optimizer: Optimizer, display: Display, pause: Callable[[], None] = lambda: None
) -> None:
    """Export, check, evaluation, report, each whatever happened to the others; done again after a kill.

    All ranks share the work; rank 0 writes.

    Args:
        pause: called where all ranks can leave the work.

    Raises:
        Unfinished: names every stage that failed.
    """
    folder, world = run.path / "export", problem.world
    failures: dict[str, Exception] = {}

    def attempt(stage: str, action: Callable[[], object]) -> bool:
        pause()
        run.require()
        try:
            with world.together():
                action()
        except Interrupted:
            raise
        except Exception as error:  # raised again once the other stages are done
            if isinstance(error, PeerFailed) and error.lost:
                raise
            failures[stage] = error
            display.say(f"{stage} failed: {told(error)}")
        return stage not in failures

    display.say("writing the export")
    if attempt("export", lambda: write_export(optimizer, folder)):
        display.say("checking the export")
        attempt("check of the export", lambda: check_export(optimizer, folder, run))
        for line in [*run.remarks(), *(_told(change) for change in run.changes())] if world.is_main else ():
            _add_to_card(folder, f"Note: {line}.")
    attempt("evaluation", lambda: evaluate_run(run, problem, optimizer, display, pause=pause, card=folder))
    attempt("model card", lambda: cards.complete(run) if world.is_main else None)
    attempt("report", lambda: report.write(run) if world.is_main else None)
    if world.is_main:
        run.record(finished=None if failures else run.newest_step())
    if failures:
        lines = [f"the run is done, but not all of its end: {run.path}"]
        lines += [f"  {stage}: {told(error)}" for stage, error in failures.items()]
        causes = list(failures.values())
        lines.append(f"once it is mended, its end is done again by: t2ialign resume {run.path}")
        traces = keep_tracebacks(run.path, causes) if world.is_main else ""
        raise Unfinished("\n".join(lines) + traces) from causes[0]


def end_seconds(problem: Problem, image_seconds: float) -> float:
    """How long the end of a run will take, if an image takes ``image_seconds``: evaluation, and the export's check."""
    evaluated = 2 * len(problem.evaluation_prompts) * problem.spec.evaluation.images_per_prompt
    return image_seconds * (evaluated + (4 * CHECKED if problem.spec.uses_lora else 0))


def _told(change: Mapping[str, Any]) -> str:
    return f"`{change['key']}` was changed from {change['from']} to {change['to']} after step {change['after step']}"


def write_export(optimizer: Optimizer, folder: Path) -> None:
    """Write what the optimizer delivers into ``folder``, whole or not at all; marked until it is checked."""
    if not optimizer.problem.world.is_main:
        return
    with files.new_folder(folder) as new:
        optimizer.export(new)
        (new / UNCHECKED).write_text("These files were written, but not yet checked.\n", encoding="utf-8")


def check_export(optimizer: Optimizer, folder: Path, run: RunDir | None = None) -> None:
    """Check a written export; its README.md says what came out, and a failure leaves ``UNCHECKED.txt``.

    Args:
        run: whose metrics say why nothing changed, where they can.

    Raises:
        ExportError: the files are not right.
        Exception: whatever kept the check from its end.
    """
    world = optimizer.problem.world
    try:
        with world.together():
            line = optimizer.check(folder)
    except Exception as error:
        if isinstance(error, Unchanged) and run:
            error.args = (f"{error}{constant_rewards(run.metrics(), optimizer.problem.rewards.optimised)}",)
        if world.is_main:
            wrong = isinstance(error, ExportError)
            reason = f"{'' if wrong else f'{type(error).__name__}: '}{error}"
            verdict = "found these files wrong" if wrong else "did not get through"
            files.write_text(folder / UNCHECKED, f"The check {verdict}: {reason}\n")
            _add_to_card(folder, f"**Unchecked**: the check of these files {verdict}: {reason}")
        raise
    if world.is_main:
        (folder / UNCHECKED).unlink()
        if line:
            _add_to_card(folder, f"Checked: {line}.")


def constant_rewards(metrics: Sequence[Mapping[str, float]], names: Sequence[str]) -> str:
    """Where the metrics of all steps show that the optimised rewards told no image from another, the words for it."""
    keys = [f"reward/{name}" for name in names]
    means = {tuple(line.get(key) for key in keys) for line in metrics}
    flat = bool(metrics) and all(line.get("fitness/constant") == 1 for line in metrics)
    if not flat and (len(metrics) < 2 or len(means) > 1 or None in next(iter(means))):
        return ""
    steps = f"at each of {len(metrics)} steps" if len(metrics) > 1 else "at the only step"
    last = [f"{name} {metrics[-1][key]:.4g}" for name, key in zip(names, keys, strict=True) if key in metrics[-1]]
    return f" (constant reward: {steps} all scores were equal, {', '.join(last)}, which gives no direction)"


def _add_to_card(folder: Path, line: str) -> None:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    files.write_text(card, f"{text.rstrip()}\n\n{line}\n".lstrip())


def evaluate_run(
    run: RunDir,
    problem: Problem,
    optimizer: Optimizer,
    display: Display,
    samplers: Mapping[str, Chosen] | None = None,
    pause: Callable[[], None] = lambda: None,
    card: Path | None = None,
) -> dict[str, Any]:
    """Write the run's ``evaluation`` folder; further samplers are variants beside base and tuned.

    Args:
        pause: called where all ranks can leave the work.
        card: an export's folder, whose card shall say what drifts.
    """
    others = {name: problem.with_sampler(chosen) for name, chosen in (samplers or {}).items()}
    total = (2 + len(others)) * len(problem.evaluation_prompts) * problem.spec.evaluation.images_per_prompt
    with display.bar("evaluating " + ", ".join(["base", "tuned", *others]), total) as bar:

        def tick(count: int) -> None:
            pause()
            bar.advance(count)

        summary = evaluate(problem, optimizer, run.path / "evaluation", tick, others)
    if drift := ", ".join(found["words"] for found in summary["drift"]):
        display.say(f"drift, tuned against base: {drift}")
        if card and card.is_dir() and problem.world.is_main:
            _add_to_card(card, f"**Drift**, tuned against base: {drift}.")
    return summary
