"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_rl.config import AwmConfig, FlowGrpoConfig, NftConfig


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "nft",
        "t2ialign_rl.optimizer:Nft",
        config=NftConfig,
        summary="DiffusionNFT: learn from good and bad images by denoising them; any sampler, any reward",
    )
    register(
        "awm",
        "t2ialign_rl.optimizer:Awm",
        config=AwmConfig,
        summary="advantage weighted matching: the denoising loss stands for the log-likelihood; any sampler",
    )
    register(
        "flow-grpo",
        "t2ialign_rl.flow_grpo:FlowGrpo",
        config=FlowGrpoConfig,
        summary="PPO on the denoising steps of a stochastic sampler, with advantages per prompt",
    )
