"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_var.config import VarConfig


@hookimpl
def t2ialign_backends(register: Register) -> None:
    register(
        "var",
        "t2ialign_var.backend:VarBackend",
        config=VarConfig,
        summary="VAR d16 - d36: class-conditional images by next-scale prediction",
        provides={"autoregressive", "lora", "tokens"},
    )
