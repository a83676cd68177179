"""``vlm-judge``: a vision-language model says how good an image is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

from PIL import Image
from torch import Tensor

from t2ialign.errors import UsageError
from t2ialign.parts.reward import Reward
from t2ialign_judges import vqa
from t2ialign_judges.config import VlmJudgeConfig
from t2ialign_judges.vlm import answers
from t2ialign_judges.vlm.answers import Opinion, Reply
from t2ialign_judges.vlm.asking import Asking, Case, scores_of, shrunk, words_of
from t2ialign_judges.vlm.memory import key_of


class VlmJudge(Reward):
    """How good a vision-language model finds an image, in [0, 1]. Not differentiable.

    An image whose answers cannot be read scores NaN, which ends the run or leaves the image out, as the spec says.
    """

    Config = VlmJudgeConfig
    elsewhere = True

    @cached_property
    def asking(self) -> Asking:
        config = self.config
        schema = None
        if config.form == "number" and config.pattern is None:
            schema = answers.number_schema(*config.scale)
        join = answers.together
        if config.form == "questions":
            join = partial(answers.to_all_questions, geometric=config.mean == "geometric")
        return Asking(config, self.label, self.device, config.form != "number", schema, join)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), float32.

        Raises:
            UsageError: form = "questions" and a prompt without questions.
            RewardError: the service refuses or goes on failing.
            Unavailable: it stays away, or the budget is used up.
        """
        return scores_of(self._opinions(images, prompts, fresh=False), images.device)

    def score_again(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return scores_of(self._opinions(images, prompts, fresh=True), images.device)

    def explain(self, images: Tensor, prompts: Sequence[str]) -> list[str]:
        return words_of(self.asking.recalled(self._seen(images, prompts)[0]))

    def _seen(self, images: Tensor, prompts: Sequence[str]) -> tuple[list[str], list[Image.Image]]:
        """Names of the rows by content, and the pictures that are shown."""
        pictures = [shrunk(image, self.config.side) for image in images]
        return [key_of(self._asked(prompt), one) for prompt, one in zip(prompts, pictures, strict=True)], pictures

    def _asked(self, prompt: str) -> str:
        """All of a prompt that is asked about."""
        return f"{prompt}\0{self._questions(prompt)}" if self.config.form == "questions" else str(prompt)

    def _questions(self, prompt: str) -> list[tuple[str, str]]:
        try:
            return vqa.questions(prompt)
        except ValueError as error:
            raise UsageError(f"{self.label}: the prompt '{prompt}' {error}") from error

    def _opinions(self, images: Tensor, prompts: Sequence[str], fresh: bool) -> list[Opinion | None]:
        keys, pictures = self._seen(images, prompts)
        cases = [self._cases(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        return self.asking.opinions(keys, [str(prompt) for prompt in prompts], cases, fresh)

    def _cases(self, picture: Image.Image, prompt: str) -> list[Case]:
        if self.config.form != "questions":
            return [Case([picture], self._worth)]
        return [
            Case([picture], partial(_answered, question=question, answer=answer), question)
            for question, answer in self._questions(prompt)
        ]

    def _worth(self, reply: Reply) -> Opinion:
        config = self.config
        if config.form == "yes":
            value = answers.yes(reply.top, config.relative)
            return Opinion(value, f"yes with a probability of {value:.3f}")
        if config.pattern is not None:
            return answers.matched(reply.text, config.pattern, *config.scale)
        return answers.number(reply.text, *config.scale)


def _answered(reply: Reply, question: str, answer: str) -> Opinion:
    value, _ = answers.probability(reply.top, vqa.spellings(answer), vqa.kin(answer))
    return Opinion(value, f"{question} {answer} with a probability of {value:.3f}")
