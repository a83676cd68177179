"""The honest objective of a solver table: the image that many more steps would give."""

from __future__ import annotations

from torch import Tensor

from t2ialign import ReferenceReward
from t2ialign_ppo.config import AgreementConfig


class Agreement(ReferenceReward):
    """Minus the root mean square pixel difference to the reference, in [-1, 0]."""

    Config = AgreementConfig

    def agree(self, images: Tensor, references: Tensor) -> Tensor:
        return -(images.float() - references.float()).square().mean((1, 2, 3)).sqrt()
