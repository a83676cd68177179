"""The same few images again and again while a run goes on: the curve to trust, the alarm, and the best step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from t2ialign.evaluation.drift import alarms
from t2ialign.evaluation.evaluate import Items, Scores, base_of, items, score, summary_of
from t2ialign.evaluation.schedule import Schedule
from t2ialign.evaluation.statistics import student_quantile
from t2ialign.problem.optimizer import Optimizer
from t2ialign.problem.problem import Problem
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir


@dataclass(frozen=True)
class Measured:
    """One evaluation along the run.

    Attributes:
        metrics: "evaluation/<reward>" and "image/<statistic>", each with "/ci95", half the length of the 95 % interval
            of its difference from the base; "evaluation/drift", the number of alarms.
        drift: the alarms in words.
        note: the rewards and where they go, for the display.
    """

    metrics: dict[str, float]
    drift: list[str]
    note: str


class Tracking:
    """Evaluations by a schedule, on all ranks together. What the base scored is kept in the run directory, so that a
    resumed run goes on."""

    def __init__(self, run: RunDir, problem: Problem, optimizer: Optimizer, schedule: Schedule) -> None:
        self.run, self.problem, self.optimizer, self.schedule = run, problem, optimizer, schedule
        self.file = run.path / "tracking.json"
        every, numbers = items(problem), range(schedule.per_prompt)
        lines = [place * every.per_prompt + number for place in schedule.prompts for number in numbers]
        self.wanted = Items([every.prompts[i] for i in lines], [every.seeds[i] for i in lines], schedule.per_prompt)
        self.references: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
        self.base: Scores = {}

    def start(self) -> Measured:
        """The base's line of the curves: step 0."""
        scores = score(self.problem, {"base": base_of(self.problem)}, self.wanted, kept=self.references)["base"]
        if self.problem.world.is_main:
            kept = {name: [v if v == v else None for v in c.tolist()] for name, c in scores.items()}
            files.write_json(self.file, kept)
        self.base = scores
        return self._measured(scores)

    def measure(self, done: int) -> Measured:
        """What the run delivers after ``done`` steps, against the base."""
        scores = score(self.problem, {"tuned": self.optimizer.generate}, self.wanted, kept=self.references)["tuned"]
        found = self._measured(scores)
        if self.problem.spec.run.keep == "best" and self.problem.world.is_main:
            self._keep(done, scores)
        return found

    def _measured(self, scores: Scores) -> Measured:
        if not self.base:
            world = self.problem.world
            if text := world.share(
                self.file.read_text(encoding="utf-8") if world.is_main and self.file.exists() else ""
            ):
                saved = json.loads(text)
                self.base = {n: torch.tensor([torch.nan if v is None else v for v in c]) for n, c in saved.items()}
            else:  # a run that began before there was this file
                self.start()
        summary = summary_of(self.problem, {"base": self.base, "tuned": scores}, self.wanted)
        pairs = {f"evaluation/{name}": pair for name, pair in summary["paired"]["tuned"].items()}
        pairs |= summary["image_statistics"]["paired"]["tuned"]
        metrics: dict[str, float] = {}
        for name, pair in pairs.items():
            if pair["mean"] is not None:
                metrics[name] = pair["mean"]
                if pair["se"] is not None:
                    metrics[f"{name}/ci95"] = student_quantile(pair["prompts"] - 1) * pair["se"]
        drift = [alarm.words for alarm in alarms(summary, self.problem.spec.evaluation.drift_threshold)]
        return Measured(metrics | {"evaluation/drift": len(drift)}, drift, _note(summary))

    def _keep(self, done: int, scores: Scores) -> None:
        """Save the optimizer's state if its first held-out reward is the highest so far."""
        names = self.problem.rewards
        first = next(name for name in names.reported if name not in names.optimised)
        value = scores[first].nanmean().item()
        best = self.run.best_value()
        if value == value and (best is None or value > best):
            self.run.save_best(done, self.optimizer.state(), value)


def _note(summary: dict[str, Any]) -> str:
    arrows = {"up": "↑", "down": "↓"}
    pairs = summary["paired"]["tuned"]
    return "  ".join(
        f"{name} {pair['mean']:.4g}{arrows.get(pair['direction'], '=')}"
        for name, pair in pairs.items()
        if pair["mean"] is not None
    )
