"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_reno.config import ImageSelectConfig, RenoConfig


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "reno",
        "t2ialign_reno.reno:Reno",
        config=RenoConfig,
        summary="gradient ascent on the initial noise of a one-step model (ReNO); delivers images",
        provides={"search"},
        requires={
            "backend": {"differentiable", "one-step"},
            "sampler": {"differentiable"},
            "reward": {"differentiable"},
        },
    )
    register(
        "image-select",
        "t2ialign_reno.image_select:ImageSelect",
        config=ImageSelectConfig,
        summary="best of n noises by reward, for any model and reward; delivers images",
        provides={"search"},
    )
