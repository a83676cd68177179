"""The spec's ``[sampler]`` tables; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from t2ialign import Requirements, SamplerConfig
from t2ialign.config import CHECKPOINT
from t2ialign.errors import UsageError, nearest
from t2ialign.foreign import parse_json, read_object, shown, tensor_header
from t2ialign.idle import Idle
from t2ialign.spec.checkpoints import local_path
from t2ialign_solvers.scheduler_classes import BOTH, DRAWN, RECTIFIED_FLOW, REFUSED

Schedule = Literal["native", "polynomial", "logsnr", "time_uniform", "discrete", "flowmatch"]


class OneStepConfig(SamplerConfig):
    """``kind = "one-step"``: no options."""

    def with_more_evaluations(self) -> list[dict[str, Any]]:
        return [{"kind": "scm", "steps": 2}, {"kind": "ddim", "steps": 2}]


class ConsistencyConfig(SamplerConfig):
    """``kind = "scm"``."""

    steps: int = Field(2, ge=1, le=16, description="network evaluations; Sana Sprint was distilled for 1 to 4")

    def evaluations(self) -> int:
        return self.steps

    def provides(self) -> set[str]:
        return {"one-step"} if self.steps == 1 else {"multi-step", "stochastic"}

    def requires(self) -> Requirements:
        return {"backend": {"one-step"} if self.steps == 1 else {"multi-step"}}


class ScheduleConfig(SamplerConfig):
    """Number and spacing of the steps, for every solver."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "rho",
            "only the schedules 'polynomial', 'time_uniform' and 'discrete' have an exponent",
            lambda own, _: own.schedule not in ("polynomial", "time_uniform", "discrete"),
            "set schedule, or leave it out",
        ),
        Idle(
            "to_zero",
            "the 'native' grid decides for itself where it ends",
            lambda own, _: own.schedule == "native",
            "set schedule, or leave it out",
        ),
    )

    steps: int = Field(20, ge=1, description="intervals from noise to data")
    schedule: Schedule = Field(
        "native",
        description="'native': the checkpoint's own grid; 'polynomial' (EDM), 'logsnr', 'time_uniform', 'discrete'"
        " (even in model time), or 'flowmatch' (rectified flow)",
    )
    rho: float | None = Field(
        None, gt=0, description="exponent; default 7 for 'polynomial', 1 for 'time_uniform' and 'discrete'"
    )
    to_zero: bool = Field(
        True,
        description="the last interval goes to noise level 0; else the grid ends at the model's smallest."
        " The 'native' grid decides for itself",
    )

    def evaluations(self) -> int:
        return self.steps


class DdimConfig(ScheduleConfig):
    """``kind = "ddim"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "eta",
            "a single step that ends at noise level 0 adds no noise",
            lambda own, _: own.steps == 1 and own.to_zero,
            "more steps, or leave it out",
        ),
    )

    eta: float = Field(0.0, ge=0, le=1, description="stochasticity: 0 deterministic, 1 ancestral (DDPM)")

    def provides(self) -> set[str]:
        return {"stochastic"} if self.eta > 0 else set()


class OdeConfig(ScheduleConfig):
    """Options of all ODE solvers."""

    afs: bool = Field(False, description="analytic first step: the first direction is guessed without the network")

    def evaluations(self) -> int:
        return self.steps - self.afs


class TwoStageConfig(OdeConfig):
    """``kind = "heun"``: two evaluations an interval, one in an interval to zero."""

    def evaluations(self) -> int:
        return 2 * self.steps - self.to_zero - self.afs


class Dpm2Config(TwoStageConfig):
    """``kind = "dpm2"``."""

    midpoint: float = Field(0.5, gt=0, lt=1, description="where the second evaluation lies, geometrically")


class IpndmConfig(OdeConfig):
    """``kind = "ipndm"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "order",
            "so many earlier directions are never there",
            lambda own, _: own.order > own.steps,
            "more steps, or a lower order",
        ),
    )

    order: int = Field(4, ge=1, le=4, description="Adams-Bashforth order")


class EpdConfig(OdeConfig):
    """``kind = "epd"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "start steps points schedule rho",
            "the table decides it",
            lambda own, _: own.table is not None,
            "leave it out, or the table",
        ),
        Idle(
            "probes_per_call",
            "an interval has no more probes",
            lambda own, _: own.table is None and own.probes_per_call >= own.points,
        ),
    )

    table: Annotated[str | None, CHECKPOINT] = Field(
        None,
        description="solver table (JSON or safetensors); it decides steps, points and schedule. Default: a start table",
    )
    start: Literal["symmetric", "arithmetic"] = Field(
        "symmetric",
        description="without a table: probes around the geometric middle of every interval, as published, or at its"
        " arithmetic thirds (K = 2), which is second-order accurate",
    )
    steps: int = Field(10, ge=1, description="intervals, without a table")
    points: int = Field(2, ge=1, description="parallel probes per interval, without a table")
    to_zero: bool = Field(
        False,
        description="one more evaluation, after the last interval, to noise level 0; always on a 'native' grid",
    )
    probes_per_call: int | None = Field(
        None,
        ge=1,
        description="probes in one network call; default: all. Fewer need less memory, results do not change",
    )

    def evaluations(self) -> int:
        steps, points, schedule = self.steps, self.points, self.schedule
        if self.table is not None and (path := local_path(self.table)) is not None:
            steps, points, schedule = table_size(path)
        return (1 + points) * steps + (self.to_zero or schedule == "native") - self.afs


def table_size(path: Path) -> tuple[int, int, Schedule]:
    """Intervals, probes and schedule of a solver table's file, without torch.

    Raises:
        UsageError: it is none.
    """
    try:
        if path.suffix == ".safetensors":
            header = tensor_header(path)
            steps, points = header["positions"]["shape"]
            schedule = parse_json(header["__metadata__"]["table"])["schedule"]
        else:
            content = read_object(path)
            steps, points, schedule = len(content["positions"]), len(content["positions"][0]), content["schedule"]
        if schedule not in get_args(Schedule):
            raise ValueError(f"has the schedule '{shown(schedule, 60)}'; there are {', '.join(get_args(Schedule))}")
    except (OSError, ValueError) as error:
        raise UsageError(f"sampler.table = '{path}' {error}") from error
    except (KeyError, TypeError, IndexError) as error:
        raise UsageError(f"sampler.table = '{path}' is no solver table") from error
    return steps, points, schedule


class DiffusersConfig(SamplerConfig):
    """``kind = "diffusers"``."""

    scheduler: str = Field(
        pattern=r"^\w+Scheduler$", description="class name in diffusers, for example UniPCMultistepScheduler"
    )
    steps: int = Field(20, ge=1, description="num_inference_steps")
    options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the scheduler, over the checkpoint's own configuration"
    )

    @field_validator("scheduler")
    @classmethod
    def _draws(cls, name: str) -> str:
        if name in REFUSED:
            raise ValueError(f"{REFUSED[name]}; there are {', '.join(sorted(DRAWN))}")
        if name not in DRAWN:
            hint = f"; did you mean '{match}'?" if (match := nearest(name, sorted(DRAWN))) else ""
            raise ValueError(f"is no scheduler of diffusers that is known here{hint}")
        return name

    def requires(self) -> Requirements:
        if self.scheduler in BOTH:
            flow = self.options.get("use_flow_sigmas") is True
            return {"backend": {"rectified-flow" if flow else "solver-schedulers"}}
        return {"backend": {"rectified-flow" if self.scheduler in RECTIFIED_FLOW else "variance-preserving"}}

    def remedies(self) -> dict[str, str]:
        flow = "'FlowMatchEulerDiscreteScheduler' and its relatives draw rectified flows"
        options = '{ use_flow_sigmas = true, prediction_type = "flow_prediction", flow_shift = <the model\'s shift> }'
        return {
            "variance-preserving": f"'{self.scheduler}' is of models that predict noise; {flow}",
            "rectified-flow": f"'{self.scheduler}' is of rectified flows; 'EulerDiscreteScheduler' and its relatives"
            " are of models that predict noise",
            "solver-schedulers": f"for a rectified flow, '{self.scheduler}' needs options = {options}",
        }

    def evaluations(self) -> int:
        return self.steps


class FlowSdeConfig(SamplerConfig):
    """``kind = "flow-sde"``."""

    steps: int = Field(10, ge=1, description="intervals from noise to data, on the checkpoint's own grid")
    noise: float = Field(0.7, gt=0, description="noise level a; 0.7 in the paper")
    form: Literal["sde", "cps", "dance"] = Field(
        "sde",
        description="steps of Flow-GRPO; ones that keep the noise level (CPS, a at most 1); or DanceGRPO's, whose"
        " noise is even along the path",
    )

    def evaluations(self) -> int:
        return self.steps

    def requires(self) -> Requirements:
        return {"backend": {"rectified-flow"}}

    def remedies(self) -> dict[str, str]:
        return {"rectified-flow": "'ddim' with eta > 0 is stochastic on any model"}
