"""What this package registers; imports no torch."""

from t2ialign import SamplerConfig, hookimpl
from t2ialign.hookspecs import Register
from t2ialign_sana.config import SanaConfig, SanaSprintConfig


@hookimpl
def t2ialign_backends(register: Register) -> None:
    register(
        "sana-sprint",
        "t2ialign_sana.sprint:SanaSprint",
        config=SanaSprintConfig,
        summary="Sana Sprint 0.6B / 1.6B: text to image in one to four steps (TrigFlow consistency model)",
        provides={"diffusion", "denoiser", "lora", "differentiable", "one-step", "multi-step", "few-step", "trigflow"},
    )
    register(
        "sana",
        "t2ialign_sana.sana:Sana",
        config=SanaConfig,
        summary="Sana 0.6B / 1.6B, SANA1.5: multi-step rectified flow with guidance",
        provides={
            "diffusion",
            "denoiser",
            "lora",
            "differentiable",
            "multi-step",
            "rectified-flow",
            "solver-schedulers",
        },
    )


@hookimpl
def t2ialign_samplers(register: Register) -> None:
    register(
        "sana-upstream-one-step",
        "t2ialign_sana.upstream:UpstreamOneStep",
        config=SamplerConfig,
        summary="HyperscaleES's one-step sampler, which leaves 27 % of the noise in: for its published numbers only",
        provides={"one-step", "differentiable"},
        requires={"backend": {"denoiser", "one-step", "trigflow"}},
    )
