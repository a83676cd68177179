"""EGGROLL and OpenAI-ES: optimizers of t2ialign, and trainers for any ``nn.Module``.

The trainers load on first use, because t2ialign imports this package to list its optimizers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ialign_eggroll.eggroll_trainer import EGGROLLTrainer, SimpleES, VanillaESTrainer
    from t2ialign_eggroll.trainers import (
        CEMTrainer,
        ClipUp,
        CMAESTrainer,
        EggrollTrainer,
        ESTrainer,
        OpenESTrainer,
        PGPETrainer,
        SNESTrainer,
        XNESTrainer,
    )

__all__ = [
    "CEMTrainer",
    "CMAESTrainer",
    "ClipUp",
    "EGGROLLTrainer",
    "ESTrainer",
    "EggrollTrainer",
    "OpenESTrainer",
    "PGPETrainer",
    "SNESTrainer",
    "SimpleES",
    "VanillaESTrainer",
    "XNESTrainer",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from t2ialign_eggroll import eggroll_trainer, trainers

    return getattr(eggroll_trainer if name in ("EGGROLLTrainer", "SimpleES", "VanillaESTrainer") else trainers, name)
