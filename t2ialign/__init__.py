"""t2ialign aligns text-to-image models with rewards.

From Python, ``t2ialign.run("spec.toml", {"run.steps": 10})`` runs a spec and ``t2ialign.open_run(folder)`` opens a run.

The public names of a plugin author: ``hookimpl``, the base classes ``Backend``, ``Sampler``, ``StepSampler``,
``Reward``, ``Optimizer``, ``LoraOptimizer``, ``Denoiser``, the config classes, and the modules ``seeding`` and
``checkpoints``. Importing this package does not import torch; what needs torch is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from t2ialign.config import BackendConfig, Config, LoraConfig, Requirements, SamplerConfig
from t2ialign.errors import RewardError, SpecError, T2IAlignError, UsageError
from t2ialign.hookspecs import hookimpl
from t2ialign.parts.backend import Backend, BackendInfo
from t2ialign.parts.denoiser import Denoiser
from t2ialign.parts.reward import ReferenceReward, Reward
from t2ialign.parts.sampler import Sampler, StepSampler
from t2ialign.problem.optimizer import LoraOptimizer, Optimizer, StepResult
from t2ialign.sizes import ImageSize, height_width
from t2ialign.spec import checkpoints
from t2ialign.spec.model import LoraOptimizerConfig, OptimizerConfig, Plan
from t2ialign.spec.prompts import Prompt
from t2ialign.tensors.state import State

if TYPE_CHECKING:
    from t2ialign import run
    from t2ialign.problem.problem import Batch, Problem
    from t2ialign.problem.rollout import Rollout
    from t2ialign.run.opened.run import Run
    from t2ialign.run.opened.run import Run as open_run
    from t2ialign.tensors import seeding
    from t2ialign.tensors.conditioning import Conditioning
    from t2ialign.tensors.paths import DiffusionPath, Prediction

__version__ = "0.2.0"

_LAZY = {
    "Batch": "t2ialign.problem.problem",
    "Conditioning": "t2ialign.tensors.conditioning",
    "DiffusionPath": "t2ialign.tensors.paths",
    "Prediction": "t2ialign.tensors.paths",
    "Problem": "t2ialign.problem.problem",
    "Rollout": "t2ialign.problem.rollout",
    "Run": "t2ialign.run.opened.run",
    "open_run": "t2ialign.run.opened.run",
    "run": "t2ialign.run",
    "seeding": "t2ialign.tensors.seeding",
}

__all__ = [
    "Backend",
    "BackendConfig",
    "BackendInfo",
    "Batch",
    "Conditioning",
    "Config",
    "Denoiser",
    "DiffusionPath",
    "ImageSize",
    "LoraConfig",
    "LoraOptimizer",
    "LoraOptimizerConfig",
    "Optimizer",
    "OptimizerConfig",
    "Plan",
    "Prediction",
    "Problem",
    "Prompt",
    "ReferenceReward",
    "Requirements",
    "Reward",
    "RewardError",
    "Rollout",
    "Run",
    "Sampler",
    "SamplerConfig",
    "SpecError",
    "State",
    "StepResult",
    "StepSampler",
    "T2IAlignError",
    "UsageError",
    "checkpoints",
    "height_width",
    "hookimpl",
    "open_run",
    "run",
    "seeding",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 't2ialign' has no attribute '{name}'")
    module = import_module(_LAZY[name])
    if name in ("run", "seeding"):
        return module
    return getattr(module, "Run" if name == "open_run" else name)
