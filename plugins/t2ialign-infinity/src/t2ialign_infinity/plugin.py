"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_infinity.config import InfinityConfig


@hookimpl
def t2ialign_backends(register: Register) -> None:
    register(
        "infinity",
        "t2ialign_infinity.backend:InfinityBackend",
        config=InfinityConfig,
        summary="Infinity 2B / 8B: text to image by bitwise next-scale prediction, up to 1 megapixel",
        provides={"autoregressive", "lora", "tokens"},
    )
