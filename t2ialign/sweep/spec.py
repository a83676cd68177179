"""``SWEEP.toml``: which keys of which spec take which values. No torch.

spec = "spec.toml"
method = "grid"                       # or "random", "optuna"
reward = "clip"                       # what decides on the way; held-out prompts decide the winner
devices = "all"                       # or ["0", "1"]: one run at a time on each; on a CPU: parallel = 2
[keys]
"optimizer.sigma" = [0.03, 0.1, 0.3]
"optimizer.learning_rate" = { low = 0.001, high = 0.1, log = true }     # random and optuna only
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from t2ialign.config import Config
from t2ialign.errors import SpecError, UsageError
from t2ialign.spec import parse as specs
from t2ialign.spec import toml
from t2ialign.spec.model import Spec
from t2ialign.spec.problems import from_pydantic

Point = dict[str, Any]


class Span(Config):
    """An interval of numbers."""

    low: float
    high: float
    log: bool = Field(False, description="even in the logarithm")
    integer: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _ordered(self) -> Span:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("needs low < high, both above 0 where log = true")
        return self

    def at(self, share: float) -> float | int:
        """The value at a share of the interval, 0 to 1."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        return round(value) if self.integer else float(f"{value:.4g}")


class SweepConfig(Config):
    """The whole file."""

    spec: str = Field(min_length=1, description="the spec file, relative to this one")
    method: Literal["grid", "random", "optuna"] = Field("grid", description="how points are chosen")
    runs: int | None = Field(None, ge=1, description="points of random and optuna; a grid has its own number")
    seed: int = Field(0, ge=0, description="decides the points of random and optuna")
    reward: str | None = Field(None, description="name of the reward that decides; default: the first optimised one")
    out: str = Field("sweeps", min_length=1, description="the sweep's folder is made inside it")
    devices: list[str] | Literal["all"] = Field([], description="CUDA devices; each has one run at a time")
    parallel: int = Field(1, ge=1, description="runs at a time where there are no devices, as on a CPU")
    keys: dict[str, list[Any] | Span] = Field(
        min_length=1, description="dotted key of the spec -> values, or low, high"
    )

    @field_validator("keys", mode="before")
    @classmethod
    def _spans(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        flat = _flat(value)
        return {key: Span.model_validate(one) if isinstance(one, dict) else one for key, one in flat.items()}

    @model_validator(mode="after")
    def _fitting(self) -> SweepConfig:
        spans = [key for key, values in self.keys.items() if isinstance(values, Span)]
        if empty := [key for key, values in self.keys.items() if values == []]:
            raise ValueError(f"keys: '{empty[0]}' has no values")
        if self.method == "grid" and spans:
            raise ValueError(f"keys: a grid needs a list of values for '{spans[0]}', not low and high")
        if self.method == "grid" and self.runs is not None:
            raise ValueError("runs: a grid has one run for every combination; leave runs out")
        if self.devices and self.parallel > 1:
            raise ValueError("parallel: every device has one run at a time; leave parallel or devices out")
        if self.method != "grid" and self.runs is None:
            raise ValueError(f"runs: method = '{self.method}' needs a number of runs")
        return self


def _flat(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Dotted keys, whether they were quoted or not; a table with "low" is a span."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{before}{key}"
        nested = isinstance(value, dict) and "low" not in value
        found |= _flat(value, f"{name}.") if nested else {name: value}
    return found


class Sweep:
    """A validated sweep file: its options and its spec.

    Raises:
        UsageError: the file, its spec, or one of its points is wrong; names key and value.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.config = SweepConfig.model_validate(toml.read(path))
        except ValidationError as error:
            raise SpecError(str(path), list(from_pydantic("", SweepConfig, error))) from error
        self.spec_file = path.resolve().parent / self.config.spec
        if not self.spec_file.is_file():
            raise UsageError(f"{path}: spec = '{self.config.spec}': no such file below {path.resolve().parent}")
        base = self.spec_of(self.corner())
        names = [reward.name for reward in base.rewards]
        self.reward = self.config.reward or next(r.name for r in base.rewards if r.mix.weight)
        if self.reward not in names:
            raise UsageError(f"{path}: reward = '{self.reward}': must be one of {', '.join(names)}")
        if base.evaluation.prompts is None:
            raise UsageError(f"{path}: {self.config.spec} has no evaluation.prompts; held-out prompts choose a winner")

    @property
    def name(self) -> str:
        return self.path.stem

    def corner(self) -> Point:
        """A first value of every key."""
        return {key: values.low if isinstance(values, Span) else values[0] for key, values in self.config.keys.items()}

    def points(self) -> list[Point]:
        """All points of a grid or a random sweep; each spec is valid."""
        keys, config = self.config.keys, self.config
        if config.method == "grid":
            lists = [values for values in keys.values() if isinstance(values, list)]
            found = [dict(zip(keys, combination, strict=True)) for combination in itertools.product(*lists)]
        else:
            draw = random.Random(config.seed)
            found = [{key: _drawn(values, draw) for key, values in keys.items()} for _ in range(config.runs or 0)]
        for point in found:
            self.spec_of(point)
        return found

    def spec_of(self, point: Point) -> Spec:
        """The spec at a point."""
        return specs.load(self.spec_file, overrides(point))

    def fingerprint(self) -> str:
        """Of everything that the runs depend on."""
        text = json.dumps(self.config.model_dump(mode="json", exclude={"out", "devices", "parallel"}), sort_keys=True)
        return hashlib.sha256(text.encode() + self.spec_file.read_bytes()).hexdigest()


def _drawn(values: list[Any] | Span, draw: random.Random) -> Any:
    return values.at(draw.random()) if isinstance(values, Span) else draw.choice(values)


def overrides(point: Point) -> list[str]:
    """A point as ``--set`` takes it."""
    return toml.assignments(point)
