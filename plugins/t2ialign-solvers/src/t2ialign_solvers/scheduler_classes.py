"""Which scheduler classes of diffusers draw which models; imports nothing. Tests try each of them on known models."""

from __future__ import annotations

#: For models that predict noise on a variance-preserving path: SD, SDXL, PixArt. DEIS and SA-Solver leave noise in a
#: rectified flow.
VARIANCE_PRESERVING = frozenset(
    {
        "CogVideoXDDIMScheduler",
        "DDIMParallelScheduler",
        "DDIMScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "TCDScheduler",
    }
)
#: For rectified flows: SD3, FLUX, Sana, Z-Image.
RECTIFIED_FLOW = frozenset(
    {
        "FlowMapEulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
    }
)
#: For both: they draw a rectified flow where their configuration says ``use_flow_sigmas``, as Sana's does.
BOTH = frozenset({"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"})
#: What another class cannot do here.
REFUSED = {
    "AmusedScheduler": "fills in tokens",
    "BlockRefinementScheduler": "fills in tokens",
    "CMStochasticIterativeScheduler": "is of consistency models on Karras' noise levels",
    "CogVideoXDPMScheduler": "needs what only CogVideoX's pipeline passes",
    "CosineDPMSolverMultistepScheduler": "is of Stable Audio's noise levels",
    "DDIMInverseScheduler": "runs from images to noise",
    "DDPMWuerstchenScheduler": "is of Wuerstchen's continuous times",
    "DPMSolverMultistepInverseScheduler": "runs from images to noise",
    "DPMSolverSDEScheduler": "draws noise with torchsde, whose seeds are those of a whole batch",
    "DiscreteDDIMScheduler": "fills in tokens",
    "EDMDPMSolverMultistepScheduler": "is of EDM's noise levels",
    "EDMEulerScheduler": "is of EDM's noise levels",
    "EntropyBoundScheduler": "fills in tokens",
    "HeliosDMDScheduler": "needs what only Helios' pipeline passes",
    "HeliosScheduler": "needs what only Helios' pipeline passes",
    "IPNDMScheduler": "is of another noise schedule; the sampler 'ipndm' draws any model",
    "KarrasVeScheduler": "is of variance-exploding models",
    "LTXEulerAncestralRFScheduler": "takes its grid from LTX's pipeline",
    "MiniMaxH3Scheduler": "is of another noise schedule",
    "PiflowScheduler": "is of networks that predict policies",
    "RFD4ProteinaScheduler": "is of proteins",
    "RePaintScheduler": "fills in parts of a given image",
    "SCMScheduler": "is of TrigFlow models, which the sampler 'scm' draws",
    "ScoreSdeVeScheduler": "is of variance-exploding models",
    "UnCLIPScheduler": "is of unCLIP's networks, which predict variances, too",
    "VQDiffusionScheduler": "fills in tokens",
}
DRAWN = VARIANCE_PRESERVING | RECTIFIED_FLOW | BOTH
