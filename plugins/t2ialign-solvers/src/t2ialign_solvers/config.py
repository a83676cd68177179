"""The spec's ``[sampler]`` tables; imports no torch."""

from __future__ import annotations

from pydantic import Field

from t2ialign import Requirements, SamplerConfig


class OneStepConfig(SamplerConfig):
    """``kind = "one-step"``: no options."""


class ConsistencyConfig(SamplerConfig):
    """``kind = "scm"``."""

    steps: int = Field(2, ge=1, le=16, description="network evaluations; Sana Sprint was distilled for 1 to 4")

    def evaluations(self) -> int:
        return self.steps

    def provides(self) -> set[str]:
        return {"one-step"} if self.steps == 1 else {"multi-step", "stochastic"}

    def requires(self) -> Requirements:
        return {"backend": {"one-step"} if self.steps == 1 else {"multi-step"}}
