"""Which small evaluation a run does along its way, at fixed held-out prompts and seeds. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from t2ialign.errors import UsageError
from t2ialign.spec.model import Plan, Spec

SHARE = 0.05  # of the run's images, at most
IMAGES, FEWEST = 64, 16  # of one evaluation, where the share and the prompts allow
TIMES, RAREST = 20, 3  # evaluations in a run: at most, and the fewest that make a curve


@dataclass(frozen=True)
class Schedule:
    """Evaluations after step 0, every ``every`` steps, and after the last.

    Attributes:
        prompts: positions of their prompts, distinct ones, among the evaluation prompts.
        per_prompt: images of each.
    """

    every: int
    prompts: tuple[int, ...]
    per_prompt: int
    steps: int

    @property
    def times(self) -> int:
        return 1 + math.ceil(self.steps / self.every)

    @property
    def images(self) -> int:
        """Of one evaluation."""
        return len(self.prompts) * self.per_prompt

    def due(self, done: int) -> bool:
        return done % self.every == 0 or done == self.steps

    def words(self, plan: Plan) -> str:
        share = self.times * self.images / (plan.steps * plan.images_per_step)
        return f"{self.times} x {self.images} images, {share:.1%} of the run's"


def schedule(spec: Spec, plan: Plan) -> Schedule | None:
    """What ``evaluation.every`` asks for; by default as often as a twentieth of the run's images allows.

    Returns:
        None: switched off, or too small a run.

    Raises:
        UsageError: ``run.keep`` or ``run.stop_on_drift`` rest on what there is not.
    """
    if spec.run.keep == "best" and all(reward.mix.weight for reward in spec.rewards):
        raise UsageError("run.keep = 'best' goes by a held-out reward: add a [[reward]] of weight 0")
    found = _schedule(spec, plan)
    if found is None and (spec.run.keep == "best" or spec.run.stop_on_drift):
        key = "keep" if spec.run.keep == "best" else "stop_on_drift"
        raise UsageError(f"run.{key} rests on evaluations along the run, and there are none: set evaluation.every")
    return found


def _schedule(spec: Spec, plan: Plan) -> Schedule | None:
    options = spec.evaluation
    if options.every == 0:
        return None
    texts = spec.evaluation_prompts()
    places = list({text: place for place, text in reversed(list(enumerate(texts)))}.values())[::-1]
    if options.every is not None:
        return Schedule(options.every, tuple(sorted(places)), options.images_per_prompt, plan.steps)
    per_prompt = min(2, options.images_per_prompt)  # two show whether a prompt's images become all alike
    budget = int(SHARE * plan.steps * plan.images_per_step / plan.image_cost)
    images = min(IMAGES, len(places) * per_prompt, max(FEWEST, budget // TIMES))
    times = min(TIMES, plan.steps + 1, budget // max(1, images))
    count = images // per_prompt
    if times < RAREST or count < 2:
        return None
    spread = [places[i * (len(places) - 1) // (count - 1)] for i in range(count)]
    return Schedule(math.ceil(plan.steps / (times - 1)), tuple(sorted(spread)), per_prompt, plan.steps)
