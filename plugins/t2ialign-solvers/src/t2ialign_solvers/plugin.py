"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_solvers.config import ConsistencyConfig, OneStepConfig


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
