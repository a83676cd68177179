"""``vlm-pairwise``: does a vision-language model prefer an image to the base model's from the same noise?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from PIL import Image
from torch import Tensor

from t2ialign.parts.reward import ReferenceReward
from t2ialign_judges.config import VlmPairwiseConfig
from t2ialign_judges.vlm import answers
from t2ialign_judges.vlm.answers import Opinion, Reply
from t2ialign_judges.vlm.asking import Asking, Case, scores_of, shrunk, words_of
from t2ialign_judges.vlm.memory import key_of


class VlmPairwise(ReferenceReward):
    """1 where the image is preferred, 0 where the reference is, 0.5 for neither. Not differentiable.

    Both orders are asked and averaged, since models prefer the first or the second place. Equal images are a tie that
    nobody is asked about.
    """

    Config = VlmPairwiseConfig
    elsewhere = True

    @cached_property
    def asking(self) -> Asking:
        return Asking(self.config, self.label, self.device, False, answers.winner_schema())

    def agree(self, images: Tensor, references: Tensor) -> Tensor:
        raise TypeError("a pair of images is judged for a prompt; see against")

    def against(self, images: Tensor, references: Tensor, prompts: Sequence[str]) -> Tensor:
        """See ``VlmJudge.score``."""
        return scores_of(self._opinions(images, references, prompts), images.device)

    def explain_against(self, images: Tensor, references: Tensor, prompts: Sequence[str]) -> list[str]:
        """A sentence on each pair that was just judged."""
        equal, keys = Opinion(0.5, "equal images"), []
        for image, other, prompt in zip(images, references, prompts, strict=True):
            keys.append("" if torch.equal(image, other) else self._key(image, other, prompt)[0])
        known = iter(self.asking.recalled([key for key in keys if key]))
        return words_of([next(known) if key else equal for key in keys])

    def _key(self, image: Tensor, other: Tensor, prompt: str) -> tuple[str, Image.Image, Image.Image]:
        pair = shrunk(image, self.config.side), shrunk(other, self.config.side)
        return key_of(str(prompt), *pair), *pair

    def _opinions(self, images: Tensor, references: Tensor, prompts: Sequence[str]) -> list[Opinion | None]:
        found: list[Opinion | None] = [Opinion(0.5, "equal images")] * len(images)
        rows = [row for row in range(len(images)) if not torch.equal(images[row], references[row])]
        keys: list[str] = []
        cases: list[list[Case]] = []
        for row in rows:
            key, mine, other = self._key(images[row], references[row], prompts[row])
            keys.append(key)
            orders = ([mine, other], partial(_preferred, place=1)), ([other, mine], partial(_preferred, place=2))
            cases.append([Case(*order) for order in orders])
        opinions = self.asking.opinions(keys, [str(prompts[row]) for row in rows], cases, fresh=False)
        for row, opinion in zip(rows, opinions, strict=True):
            found[row] = opinion
        return found


def _preferred(reply: Reply, place: int) -> Opinion:
    """What an answer says for the image in a place."""
    choice, why = answers.winner(reply.text)
    return Opinion(0.5 if choice == 0 else float(choice == place), why)
