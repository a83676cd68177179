"""Evolution strategies for any ``nn.Module`` and any fitness function, no autograd involved.

trainer = EggrollTrainer(model, fitness)
trainer.train(300)
"""

from __future__ import annotations

from t2ialign_eggroll.trainers.adaptive import CEMTrainer, PGPETrainer, SNESTrainer
from t2ialign_eggroll.trainers.clipup import ClipUp
from t2ialign_eggroll.trainers.cma import CMAESTrainer
from t2ialign_eggroll.trainers.trainer import EggrollTrainer, ESTrainer, OpenESTrainer
from t2ialign_eggroll.trainers.xnes import XNESTrainer

__all__ = [
    "CEMTrainer",
    "CMAESTrainer",
    "ClipUp",
    "ESTrainer",
    "EggrollTrainer",
    "OpenESTrainer",
    "PGPETrainer",
    "SNESTrainer",
    "XNESTrainer",
]
