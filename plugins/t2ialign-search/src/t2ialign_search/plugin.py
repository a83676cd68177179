"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_search.config import EvoConfig, FkConfig, ZeroOrderConfig
from t2ialign_search.hyper_noise.config import HyperNoiseConfig


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "fk-steering",
        "t2ialign_search.fk_steering:FkSteering",
        config=FkConfig,
        summary="particles resampled by reward while they are sampled (Feynman-Kac steering); delivers images",
        provides={"search"},
    )
    register(
        "evo-search",
        "t2ialign_search.evo_search:EvoSearch",
        config=EvoConfig,
        summary="evolution of noises and of latents on the way (EvoSearch); delivers images",
        provides={"search"},
    )
    register(
        "zero-order",
        "t2ialign_search.zero_order:ZeroOrderSearch",
        config=ZeroOrderConfig,
        summary="steps to the best noise around a pivot, without gradients; delivers images",
        provides={"search"},
        requires={"backend": {"denoiser"}},
    )
    register(
        "hyper-noise",
        "t2ialign_search.hyper_noise.optimizer:HyperNoise",
        config=HyperNoiseConfig,
        summary="train a network that maps the noise of a one-step model to better noise (HyperNoise)",
        requires={"backend": {"denoiser"}},
    )
