"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_eggroll.config import EggrollConfig, OpenESConfig


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "eggroll",
        "t2ialign_eggroll.eggroll:Eggroll",
        config=EggrollConfig,
        summary="evolution strategy with low-rank perturbations; any reward, no back-propagation",
    )
    register(
        "open-es",
        "t2ialign_eggroll.eggroll:OpenES",
        config=OpenESConfig,
        summary="evolution strategy with full-rank Gaussian perturbations; any reward, no back-propagation",
    )
