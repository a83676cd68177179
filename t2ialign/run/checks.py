"""What an optimizer hands over is looked at where it arrives, so that a fault is told by its name."""

from __future__ import annotations

import json
import logging
import math

from torch import Tensor

from t2ialign.errors import PartError
from t2ialign.problem.optimizer import Optimizer, StepResult
from t2ialign.tensors.state import State

log = logging.getLogger(__name__)
#: Metrics of which was said that they are not finite.
_told: set[str] = set()


def result(optimizer: Optimizer, step: StepResult, index: int) -> StepResult:
    """A step's result with plain numbers as metrics.

    Raises:
        PartError: it is no ``StepResult``, or a metric is no number.
    """
    if not isinstance(step, StepResult):
        raise PartError(f"{optimizer.label}: step({index}) returned {type(step).__name__}; must return StepResult")
    metrics: dict[str, float] = {}
    for name, value in step.metrics.items():
        if isinstance(value, Tensor) and value.ndim == 0:
            value = value.item()
        if not isinstance(value, int | float):
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise PartError(f"{optimizer.label}: metric '{name}' of step {index + 1} is {shown}; must be one number")
        if not math.isfinite(value) and name not in _told:
            _told.add(name)
            log.warning("metric '%s' of step %d is %s: metrics.jsonl has null there", name, index + 1, value)
        metrics[name] = value
    return StepResult(metrics, step.images)


def state(optimizer: Optimizer) -> None:
    """Would a checkpoint give back what ``state()`` gave?

    Raises:
        PartError: tensors that are none, or values that JSON changes or does not take.
    """
    found = optimizer.state()
    if not isinstance(found, State):
        raise PartError(f"{optimizer.label}: state() returned {type(found).__name__}; must return State")
    for name, tensor in found.tensors.items():
        if not isinstance(tensor, Tensor):
            raise PartError(f"{optimizer.label}: state().tensors['{name}'] is {type(tensor).__name__}, no tensor")
    for name, value in found.values.items():
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError) as error:
            raise PartError(f"{optimizer.label}: state().values['{name}'] is no JSON: {error}") from error
        if not same:
            raise PartError(
                f"{optimizer.label}: JSON changes state().values['{name}'] = {value!r}; use lists and text keys"
            )
