"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_zimage.config import ZImageConfig


@hookimpl
def t2ialign_backends(register: Register) -> None:
    register(
        "z-image",
        "t2ialign_zimage.backend:ZImage",
        config=ZImageConfig,
        summary="Z-Image 6B: Turbo in about 8 steps, or the base model",
        provides={"diffusion", "denoiser", "lora", "differentiable", "multi-step", "rectified-flow"},
    )
