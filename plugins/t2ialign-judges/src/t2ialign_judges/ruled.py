"""Rewards that look for objects and judge them by GenEval's rules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor

from t2ialign.errors import UsageError
from t2ialign.parts.reward import Reward
from t2ialign.spec.prompts import data_of
from t2ialign_judges import rules
from t2ialign_judges.config import RulesConfig
from t2ialign_judges.rules import Asked, ColorOf, Detections, Limits, Verdict

Look = tuple[Detections, ColorOf]


class RuledReward(Reward):
    """1 or 0, or a grade, by the rules of GenEval. Not differentiable; prompts need GenEval's metadata.

    Attributes:
        limits: the constants of the rules.
    """

    Config = RulesConfig
    limits: Limits

    @abstractmethod
    def look(self, images: Tensor, asked: Sequence[Asked]) -> list[Look]:
        """What each image (3, H, W) shows, and the colours of that; only the classes that are asked for matter."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), float32, of images (B, 3, H, W) in [0, 1].

        Raises:
            UsageError: a prompt has no metadata of GenEval's form.
        """
        scores = [verdict.score for verdict in self.verdicts(images, prompts)]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def score_again(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.__dict__.pop("_last", None)
        return self.score(images, prompts)

    def explain(self, images: Tensor, prompts: Sequence[str]) -> list[str]:
        return [verdict.words for verdict in self.verdicts(images, prompts)]

    @torch.no_grad()
    def verdicts(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """The verdicts; those on the tensor that was judged last are remembered."""
        asked = [self._asked(prompt) for prompt in prompts]
        if (last := self.__dict__.get("_last")) and last[0]() is images and last[1:3] == (_version(images), asked):
            return list(last[3])
        judge = rules.FORMS[self.config.form]
        verdicts = [
            judge(wanted, rules.scene(wanted, detections, color_of, self.limits))
            for wanted, (detections, color_of) in zip(asked, self.look(images, asked), strict=True)
        ]
        if not images.is_inference():  # such tensors do not count their changes
            self._last = (ref(images), _version(images), asked, verdicts)
        return verdicts

    def _asked(self, prompt: str) -> Asked:
        data = data_of(prompt)
        if "include" not in data:
            raise UsageError(f"{self.label} reads GenEval's 'include', which the prompt '{prompt}' does not have")
        if problem := self.config.problem_with(prompt):
            raise UsageError(f"{self.label}, prompt '{prompt}': {problem}")
        return rules.read(data)


def _version(images: Tensor) -> int:
    return -1 if images.is_inference() else images._version
