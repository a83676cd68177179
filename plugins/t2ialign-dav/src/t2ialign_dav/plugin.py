"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_dav.config import DavConfig, DavSearchConfig, DavUpstreamConfig, FlowSdeConfig


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "dav",
        "t2ialign_dav.optimizer:Dav",
        config=DavConfig,
        summary="search good trajectories at test time, then learn to follow them; any reward, keeps diversity",
    )
    register(
        "dav-upstream",
        "t2ialign_dav.optimizer:DavUpstream",
        config=DavUpstreamConfig,
        summary="DAV as its published code does it: tree search, one trajectory at a time",
    )
    register(
        "dav-search",
        "t2ialign_dav.search_only:DavSearch",
        config=DavSearchConfig,
        summary="DAV's search alone, nothing is trained: better images at inference",
    )


@hookimpl
def t2ialign_samplers(register: Register) -> None:
    register(
        "flow-sde",
        "t2ialign_dav.flow_sde:FlowSde",
        config=FlowSdeConfig,
        summary="stochastic sampler of rectified flows (Flow-GRPO)",
        provides={"multi-step", "stochastic", "differentiable"},
        requires={"backend": {"denoiser", "multi-step"}},
    )
