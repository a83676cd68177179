"""t2ialign aligns text-to-image models with rewards.

The public names of a plugin author: ``hookimpl``, the base classes ``Backend``, ``Sampler``, ``StepSampler``,
``Reward``, ``Optimizer``, ``LoraOptimizer``, ``Denoiser``, and the config classes. Importing them does not
import torch.
"""

from t2ialign.config import (
    BackendConfig,
    Config,
    LoraConfig,
    OptimizerConfig,
    Plan,
    Requirements,
    SamplerConfig,
)
from t2ialign.contracts import (
    Backend,
    BackendInfo,
    Denoiser,
    LoraOptimizer,
    Optimizer,
    Prediction,
    ReferenceReward,
    Reward,
    Sampler,
    State,
    StepResult,
    StepSampler,
)
from t2ialign.errors import RewardError, SpecError, T2IAlignError, UsageError
from t2ialign.hookspecs import hookimpl

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendConfig",
    "BackendInfo",
    "Config",
    "Denoiser",
    "LoraConfig",
    "LoraOptimizer",
    "Optimizer",
    "OptimizerConfig",
    "Plan",
    "Prediction",
    "ReferenceReward",
    "Requirements",
    "Reward",
    "RewardError",
    "Sampler",
    "SamplerConfig",
    "SpecError",
    "State",
    "StepResult",
    "StepSampler",
    "T2IAlignError",
    "UsageError",
    "hookimpl",
]
