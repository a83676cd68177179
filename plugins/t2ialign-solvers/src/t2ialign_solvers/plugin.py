"""What this package registers; imports no torch."""

from t2ialign import SamplerConfig, hookimpl
from t2ialign.hookspecs import Register
from t2ialign_solvers.config import (
    ConsistencyConfig,
    DdimConfig,
    DiffusersConfig,
    Dpm2Config,
    EpdConfig,
    FlowSdeConfig,
    IpndmConfig,
    OdeConfig,
    OneStepConfig,
    TwoStageConfig,
)

#: kind, class in this package, options, summary, capabilities.
MULTI_STEP: list[tuple[str, str, type[SamplerConfig], str, set[str]]] = [
    ("ddim", "ddim:Ddim", DdimConfig, "DDIM: first order; eta > 0 makes it stochastic", {"differentiable"}),
    ("euler", "single_step:Euler", OdeConfig, "Euler: first order, DDIM with eta = 0", {"differentiable"}),
    (
        "flow-sde",
        "flow_sde:FlowSde",
        FlowSdeConfig,
        "stochastic sampler of rectified flows (Flow-GRPO)",
        {"stochastic", "differentiable"},
    ),
    (
        "heun",
        "single_step:Heun",
        TwoStageConfig,
        "Heun (EDM): second order, two evaluations a step",
        {"differentiable"},
    ),
    ("dpm2", "single_step:Dpm2", Dpm2Config, "DPM-Solver-2: second order through a midpoint", {"differentiable"}),
    ("ipndm", "multistep:Ipndm", IpndmConfig, "iPNDM: Adams-Bashforth, one evaluation a step", {"differentiable"}),
    (
        "dpmpp-2m",
        "multistep:DpmSolverPlusPlus2M",
        OdeConfig,
        "DPM-Solver++(2M): second order, one evaluation a step",
        {"differentiable"},
    ),
    ("epd", "epd:Epd", EpdConfig, "EPD: K parallel probes a step, from a solver table", {"differentiable", "table"}),
    ("diffusers", "scheduler:DiffusersScheduler", DiffusersConfig, "any scheduler class of diffusers, by name", set()),
]


@hookimpl
def t2ialign_samplers(register: Register) -> None:
    register(
        "one-step",
        "t2ialign_solvers.one_step:OneStep",
        config=OneStepConfig,
        summary="the denoiser's x0 from pure noise: exact for models distilled to one step",
        provides={"one-step", "differentiable"},
        requires={"backend": {"denoiser", "one-step"}},
    )
    register(
        "scm",
        "t2ialign_solvers.consistency:Consistency",
        config=ConsistencyConfig,
        summary="multistep consistency sampling: predict x0, add fresh noise, repeat",
        provides={"differentiable"},
        requires={"backend": {"denoiser"}},
    )
    for kind, target, config, summary, provides in MULTI_STEP:
        register(
            kind,
            f"t2ialign_solvers.{target}",
            config=config,
            summary=summary,
            provides={"multi-step", *provides},
            requires={"backend": {"denoiser", "multi-step"}},
        )
