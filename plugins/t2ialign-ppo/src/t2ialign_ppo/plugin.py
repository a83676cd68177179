"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_ppo.config import AgreementConfig, PpoEpdConfig


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "ppo-epd",
        "t2ialign_ppo.optimizer:PpoEpd",
        config=PpoEpdConfig,
        summary="PPO on the solver table of the epd sampler; the model stays frozen, any reward",
        provides={"references"},
        requires={"backend": {"denoiser"}, "sampler": {"table"}},
    )


@hookimpl
def t2ialign_rewards(register: Register) -> None:
    register(
        "agreement",
        "t2ialign_ppo.agreement:Agreement",
        config=AgreementConfig,
        summary="minus the pixel RMSE to the image that a many-step sampler draws from the same noise",
        provides={"reference"},
    )
