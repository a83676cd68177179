"""The runs of a sweep, one after the other or one per device; a killed sweep goes on with the runs that it was at."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.run.display import Display
from t2ialign.storage import files
from t2ialign.sweep import effects, workers
from t2ialign.sweep.one import result_of
from t2ialign.sweep.spec import Point, Span, Sweep


def run(sweep: Sweep, display: Display | None = None) -> dict[str, Any]:
    """Run what is not finished yet, and write results.json, table.csv, table.md and report.html after every run.

    A run that fails is kept with its error, and the others follow.

    Returns:
        What is in results.json: "runs", "effects", "winner".

    Raises:
        UsageError: the folder is of another sweep, or the package optuna is not installed.
    """
    display = display or Display()
    folder = places.path(sweep.config.out) / sweep.name
    _claim(sweep, folder)
    done: dict[int, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    choose, tell, total = _chooser(sweep)

    def begin(number: int) -> Point:
        point = _point_file(folder, number) or choose(number)
        files.write_json(folder / f"point-{number:03d}.json", point)
        display.say(f"run {number + 1} of {total}: " + ", ".join(f"{key} = {value}" for key, value in point.items()))
        return point

    where = workers.slots(sweep.config)
    if len(where) > 1 or where[0] is not None:
        finished = workers.side_by_side(sweep, folder, total, begin, where)
    else:
        finished = _one_after_the_other(sweep, folder, total, begin, display)
    for number, point, result in finished:
        tell(number, point, result["score"])
        done[number] = result
        found = _write(sweep, folder, [done[known] for known in sorted(done)])
    return found


def _one_after_the_other(
    sweep: Sweep, folder: Path, total: int, begin: Callable[[int], Point], display: Display
) -> Iterator[tuple[int, Point, dict[str, Any]]]:
    for number in range(total):
        point = begin(number)
        yield number, point, result_of(sweep, folder / f"run-{number:03d}", point, display)
        gc.collect()  # the run's network goes before the next one comes


def _claim(sweep: Sweep, folder: Path) -> None:
    file = folder / "sweep.json"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8"))["fingerprint"] != sweep.fingerprint():
            raise UsageError(f"{folder} is of other settings or another spec: rename {sweep.path.name}, or remove it")
        return
    if folder.exists() and places.listed(folder):
        raise UsageError(f"{folder} is not empty and no sweep; choose another out in {sweep.path}")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(file, {"fingerprint": sweep.fingerprint(), "sweep": str(sweep.path), "reward": sweep.reward})


def _point_file(folder: Path, number: int) -> Point | None:
    file = folder / f"point-{number:03d}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _chooser(
    sweep: Sweep,
) -> tuple[Callable[[int], Point], Callable[[int, Point, float | None], None], int]:
    """How the point of a run is chosen, who hears of its score, and how many runs there are."""
    if sweep.config.method != "optuna":
        points = sweep.points()
        return points.__getitem__, lambda number, point, score: None, len(points)
    return _optuna(sweep)


def _optuna(sweep: Sweep) -> tuple[Callable[[int], Point], Callable[[int, Point, float | None], None], int]:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("method = 'optuna' needs the package optuna: pip install 't2ialign[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=sweep.config.seed))
    spaces = {key: _distribution(optuna, values) for key, values in sweep.config.keys.items()}
    asked: dict[int, Any] = {}

    def listed(key: str) -> bool:
        return isinstance(sweep.config.keys[key], list)

    def choose(number: int) -> Point:
        # A sampler's draws depend on how often it was asked: a resumed sweep asks as an unbroken one does.
        study.sampler = optuna.samplers.TPESampler(seed=sweep.config.seed + number)
        asked[number] = study.ask(spaces)
        return {key: json.loads(v) if listed(key) else v for key, v in asked[number].params.items()}

    def tell(number: int, point: Point, score: float | None) -> None:
        if number in asked:
            study.tell(asked[number], score, state=None if score is not None else optuna.trial.TrialState.FAIL)
        elif score is not None:
            params = {key: json.dumps(value) if listed(key) else value for key, value in point.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=score))

    return choose, tell, sweep.config.runs or 0


def _distribution(optuna: Any, values: list[Any] | Span) -> Any:
    kinds = optuna.distributions
    if isinstance(values, list):
        return kinds.CategoricalDistribution([json.dumps(value) for value in values])
    if values.integer:
        return kinds.IntDistribution(round(values.low), round(values.high), log=values.log)
    return kinds.FloatDistribution(values.low, values.high, log=values.log)


def _write(sweep: Sweep, folder: Path, results: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"reward": sweep.reward, "runs": results, "effects": effects.effects(results)}
    found["winner"] = effects.winner(results)
    files.write_json(folder / "results.json", found)
    files.write_text(folder / "table.csv", effects.as_csv(results, sweep.reward))
    files.write_text(folder / "table.md", effects.as_markdown(results, sweep.reward))
    files.write_text(folder / "report.html", effects.page(sweep.name, results, sweep.reward))
    return {**found, "folder": str(folder)}
