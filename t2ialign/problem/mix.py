"""The reward mix: score with every reward, normalise each, sum with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign.config import RewardMixConfig
from t2ialign.errors import RewardError, blaming
from t2ialign.parts.reward import ReferenceReward, Reward
from t2ialign.problem.advantages import centred_ranks, standardised
from t2ialign.tensors.batching import split


@dataclass(frozen=True)
class MixedReward:
    """One reward of the mix, with its name, weight and normalisation."""

    name: str
    reward: Reward
    mix: RewardMixConfig


class RewardMix:
    """Several rewards as one. Rewards of weight 0 are held-out diagnostics: scored and logged, never optimised.

    Those that compare the images of one prompt are kept apart, and so are diagnostics that compare with reference
    images: only who has such images at hand can score them.
    """

    def __init__(self, rewards: Sequence[MixedReward], drop_nonfinite: bool = False) -> None:
        self.references = [r for r in rewards if isinstance(r.reward, ReferenceReward)]
        self.comparisons = [r for r in rewards if r.reward.per_prompt or (r in self.references and r.mix.weight == 0)]
        self.rewards = [r for r in rewards if r not in self.comparisons]
        self.drop_nonfinite = drop_nonfinite
        for part in rewards:
            part.reward.may_miss = drop_nonfinite

    @property
    def reported(self) -> list[str]:
        """Names of everything that an evaluation measures, the optimised ones first."""
        return self.names + [r.name for r in self.comparisons]

    @property
    def names(self) -> list[str]:
        """All names of rewards of single images, the optimised ones first."""
        held_out = [r.name for r in self.rewards if r.mix.weight == 0]
        return self.optimised + held_out

    @property
    def optimised(self) -> list[str]:
        return [r.name for r in self.rewards if r.mix.weight != 0]

    def score(
        self,
        images: Tensor,
        prompts: Sequence[str],
        *,
        optimised_only: bool = False,
        micro_batch: int | None = None,
        references: Mapping[str, Tensor] | None = None,
        check: bool = True,
    ) -> dict[str, Tensor]:
        """Raw scores by name, each float32 (B,). Gradients flow where a reward is differentiable.

        Args:
            references: see ``Problem.references``; needed where an optimised reward compares with reference images.
            check: look at the scores now, for which the device has to finish them; otherwise the caller does later.

        Raises:
            RewardError: a score is checked, is not finite, and the spec does not say to drop such samples.
        """
        wanted = [part for part in self.rewards if part.mix.weight != 0 or not optimised_only]
        chunks: dict[str, list[Tensor]] = {part.name: [] for part in wanted}
        for rows in split(len(images), micro_batch or len(images)):
            chunk, texts = images[rows], list(prompts[rows])  # one tensor for all: rewards may share work on it
            for part in wanted:
                with blaming(part.reward.label):
                    part.reward.begin(chunk, texts)
            for part in wanted:
                values = _scores(part, chunk, texts, references, rows)
                if check:
                    self.check(part.name, values, chunk, texts)
                chunks[part.name].append(values)
        return {name: torch.cat(values) for name, values in chunks.items()}

    def compare(
        self, images: Tensor, prompts: Sequence[str], references: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Scores (B,) of the diagnostics that compare the images of one prompt (NaN where an image is alone), or
        images with references.

        Args:
            images: all images of their prompts.
            references: see ``Problem.references``.
        """
        return {part.name: _scores(part, images, prompts, references, slice(None)) for part in self.comparisons}

    @torch.no_grad()
    def unrepeatable(self, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """Rewards of single images that score the same images otherwise the second time -> the largest difference."""
        found: dict[str, float] = {}
        for part in self.rewards:
            if not isinstance(part.reward, ReferenceReward):
                first = score_with(part.reward, images, prompts)
                with blaming(part.reward.label):
                    second = part.reward.score_again(images, prompts)
                again = _checked(part.reward, second, images)
                if not torch.equal(first.nan_to_num(), again.nan_to_num()):
                    found[part.name] = (first - again).abs().nan_to_num(torch.inf).max().item()
        return found

    def explain(
        self, images: Tensor, prompts: Sequence[str], references: Mapping[str, Tensor] | None = None
    ) -> dict[str, list[str]]:
        """What rewards have to say of images that were just scored, by name; one sentence an image."""
        found: dict[str, list[str]] = {}
        for part in [*self.rewards, *self.comparisons]:
            reward = part.reward
            with blaming(reward.label):
                if isinstance(reward, ReferenceReward):
                    words = reward.explain_against(images, (references or {})[part.name], prompts)
                else:
                    words = reward.explain(images, prompts)
            if words is not None:
                if len(words) != len(images):
                    raise RewardError(f"{reward.label} explains {len(words)} of {len(images)} images; must be each")
                found[part.name] = [str(text) for text in words]
        return found

    def check(self, name: str, values: Tensor, images: Tensor, prompts: Sequence[str]) -> None:
        """Raise a ``RewardError`` with the image of the first score that is not finite, unless the spec drops such."""
        if self.drop_nonfinite:
            return
        finite = values.detach().isfinite()
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise RewardError(
                f"reward '{name}' is {values[row].item()} for prompt '{prompts[row]}'; look at the saved image, or set"
                " run.nonfinite = 'drop' to leave such samples out",
                image=images[row].detach(),
            )

    def combine(self, raw: dict[str, Tensor], prompt_index: Tensor | None = None) -> Tensor:
        """Normalise and sum with weights: the number that is optimised.

        Args:
            raw: name -> scores, all of one shape; the whole statistical batch, not a micro-batch.
            prompt_index: which prompt each score belongs to, broadcastable to that shape (for 'zscore-prompt').

        Returns:
            Combined reward, same shape; NaN where any optimised part is not finite.
        """
        total: Tensor | None = None
        for part in self.rewards:
            if part.mix.weight != 0:
                term = part.mix.weight * normalise(raw[part.name], part.mix, prompt_index)
                total = term if total is None else total + term
        if total is None:
            raise ValueError("the mix has no reward with a weight other than 0")
        return total


def _scores(
    part: MixedReward, images: Tensor, prompts: Sequence[str], references: Mapping[str, Tensor] | None, rows: slice
) -> Tensor:
    """What a reward gave, checked: float32 (B,) on the images' device."""
    reward = part.reward
    if not isinstance(reward, ReferenceReward):
        return score_with(reward, images, prompts)
    with blaming(reward.label):
        values = reward.against(images, (references or {})[part.name][rows], prompts)
    return _checked(reward, values, images)


def score_with(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward's scores of images, checked: float32 (B,) on the images' device.

    Raises:
        RewardError: something else came; names the reward and its package.
    """
    with blaming(reward.label):
        values = reward.score(images, prompts)
    return _checked(reward, values, images)


def _checked(reward: Reward, values: object, images: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise RewardError(f"{reward.label} returned {type(values).__name__}; must be a tensor ({len(images)},)")
    if values.shape != (len(images),):
        raise RewardError(f"{reward.label} gave shape {tuple(values.shape)} for {len(images)} images; must be one each")
    if values.is_complex():
        raise RewardError(f"{reward.label} gave {values.dtype}; scores are real numbers")
    if reward.differentiable and images.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
        raise RewardError(f"{reward.label} promises gradients, but its score has none: does it detach, or use no_grad?")
    return values.to(images.device).float()


def normalise(scores: Tensor, mix: RewardMixConfig, prompt_index: Tensor | None = None) -> Tensor:
    """One reward's normalisation over a batch of any shape; non-finite scores become NaN and count for nothing."""
    scores = torch.where(scores.isfinite(), scores, torch.nan)
    match mix.normalise:
        case "range":
            low, high = mix.range or [0.0, 1.0]
            return (scores - low) / (high - low)
        case "zscore":
            return _zscore(scores)
        case "zscore-prompt":
            if prompt_index is None:
                raise ValueError("normalise = 'zscore-prompt' needs the prompt of every score")
            groups = prompt_index.to(scores.device).expand_as(scores)
            result = torch.empty_like(scores)
            for group in groups.unique():
                result[groups == group] = _zscore(scores[groups == group])
            return result
        case "rank":
            return centred_ranks(scores)
        case _:
            return scores


def _zscore(scores: Tensor) -> Tensor:
    return standardised(scores.flatten(), eps=1e-6).view_as(scores)
