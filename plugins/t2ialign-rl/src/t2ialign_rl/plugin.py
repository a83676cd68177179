"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_rl.config import (
    AwmConfig,
    DraftConfig,
    FlowGrpoConfig,
    GrpoArConfig,
    NftConfig,
    OnlineDpoConfig,
    SrpoConfig,
)


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "nft",
        "t2ialign_rl.methods.nft:Nft",
        config=NftConfig,
        summary="DiffusionNFT: learn from good and bad images by denoising them; any sampler, any reward",
    )
    register(
        "awm",
        "t2ialign_rl.methods.awm:Awm",
        config=AwmConfig,
        summary="advantage weighted matching: the denoising loss stands for the log-likelihood; any sampler",
    )
    register(
        "flow-grpo",
        "t2ialign_rl.methods.flow_grpo:FlowGrpo",
        config=FlowGrpoConfig,
        summary="PPO on the denoising steps of a stochastic sampler, with advantages per prompt",
    )
    register(
        "online-dpo",
        "t2ialign_rl.methods.online_dpo:OnlineDpo",
        config=OnlineDpoConfig,
        summary="Diffusion-DPO on fresh images: the best of every prompt against its worst; any sampler, any reward",
    )
    register(
        "grpo-ar",
        "t2ialign_rl.methods.grpo_ar:GrpoAr",
        config=GrpoArConfig,
        summary="PPO on the tokens of next-scale autoregressive models, with advantages per prompt",
    )
    register(
        "draft",
        "t2ialign_rl.methods.draft:Draft",
        config=DraftConfig,
        summary="the reward's gradient through the sampler's last steps (DRaFT, AlignProp, ReFL)",
    )
    register(
        "srpo",
        "t2ialign_rl.methods.srpo:Srpo",
        config=SrpoConfig,
        summary="the gradient of a good phrase's reward against a bad one's, through one step from a noised image",
    )
