"""What all judges share: the rubric, whom to ask, votes, further tries, the budget, and what was asked before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2ialign.errors import Unavailable
from t2ialign.storage.images import to_pil
from t2ialign_judges.config import AskingConfig
from t2ialign_judges.vlm import answers
from t2ialign_judges.vlm.answers import Opinion, Reply, Unreadable
from t2ialign_judges.vlm.memory import Memory
from t2ialign_judges.vlm.voices import Endpoint, Local, Question, Voice
from t2ialign_rewards.config import ServiceConfig
from t2ialign_rewards.service import Patience, Service, bearer
from t2ialign_rewards.text import read_words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One thing that is asked.

    Attributes:
        images: in their order.
        worth: of the answer.
        question: what {question} of the rubric becomes.
    """

    images: Sequence[Image.Image]
    worth: Callable[[Reply], Opinion]
    question: str = ""


#: Options that decide how it is asked, not what comes out.
MANNERS = ServiceConfig.model_fields.keys() | {"rubric", "question", "cache", "budget", "sampler"}


class Asking:
    """A model that is asked about images.

    Args:
        schema: of the JSON that is asked for; None: a word or a text.
        join: makes one opinion of all answers about a row.
    """

    def __init__(
        self,
        config: AskingConfig,
        label: str,
        device: torch.device,
        probabilities: bool,
        schema: Any = None,
        join: Callable[[Sequence[Opinion]], Opinion] = answers.together,
    ) -> None:
        self.config, self.label, self.device = config, label, device
        self.probabilities, self.schema, self.join = probabilities, schema, join
        self.rubric = self._rubric()
        deciding = type(config).model_fields.keys() - MANNERS
        identity = {"rubric": self.rubric, **{name: str(getattr(config, name)) for name in sorted(deciding)}}
        self.memory = Memory(identity, config.cache)
        self.calls = 0

    @cached_property
    def voice(self) -> Voice:
        config = self.config
        if config.url is None:
            return Local(
                config.model, config.revision, config.dtype, self.device, config.temperature, config.max_tokens
            )
        patience = Patience(
            config.timeout, config.silence or config.timeout, config.retries, config.backoff, config.wait
        )
        url = config.url.rstrip("/") + "/chat/completions"
        service = Service([url], patience, bearer(config.token_variable, self.label), config.concurrency)
        settings = {"model": config.model, "temperature": config.temperature, **config.extra}
        return Endpoint(service, settings, config.max_tokens)

    def _rubric(self) -> str:
        config = self.config
        if config.rubric is None:
            return config.question or config.usual_question()
        return read_words(config.rubric, self.label)

    def opinions(
        self, keys: Sequence[str], prompts: Sequence[str], cases: Sequence[Sequence[Case]], fresh: bool
    ) -> list[Opinion | None]:
        """What the model thinks of each row; None where its answers cannot be read.

        Args:
            keys: names of the rows, by content.
            cases: of each row, what is asked.
            fresh: ask whatever was asked before, and remember nothing.
        """
        found: list[Opinion | None] = [None if fresh else self.memory.recall(key) for key in keys]
        first: dict[str, int] = {}  # equal rows are asked once
        for row, key in enumerate(keys):
            if found[row] is None:
                first.setdefault(key, row)
        wanted = {
            (row, vote, place): case
            for row in first.values()
            for vote in range(self.config.votes)
            for place, case in enumerate(cases[row])
        }
        given: dict[tuple[int, int, int], Opinion] = {}
        for attempt in range(self.config.retries + 1):
            futures = {
                part: self._begin(case, prompts[part[0]], part[1] + 1000 * attempt)
                for part, case in wanted.items()
                if part not in given
            }
            self._read(futures, wanted, given)
            if len(given) == len(wanted):
                break
        for row in first.values():
            votes = [given[part] for part in wanted if part[0] == row and part in given]
            if len(votes) == sum(part[0] == row for part in wanted):
                found[row] = opinion = self.join(votes)
                if not fresh:
                    self.memory.keep(keys[row], opinion)
        return [found[first[key]] if key in first else found[row] for row, key in enumerate(keys)]

    def recalled(self, keys: Sequence[str]) -> list[Opinion | None]:
        """What was thought of rows; nobody is asked."""
        return [self.memory.recall(key) for key in keys]

    def _begin(self, case: Case, prompt: str, seed: int) -> Future[Reply]:
        if self.config.budget is not None and self.calls >= self.config.budget:
            raise Unavailable(f"{self.label}: the budget of {self.config.budget} calls is used up")
        self.calls += 1
        text = self.rubric.replace("{question}", case.question).replace("{prompt}", prompt)
        return self.voice.begin(Question(case.images, text, self.probabilities, self.schema, seed))

    def _read(
        self,
        futures: Mapping[tuple[int, int, int], Future[Reply]],
        wanted: Mapping[Any, Case],
        given: dict[Any, Opinion],
    ) -> None:
        try:
            for part, future in futures.items():
                reply = future.result()
                try:
                    given[part] = wanted[part].worth(reply)
                except Unreadable as error:
                    log.warning("%s: %s", self.label, error)
        finally:
            for future in futures.values():  # of no use once one has failed
                future.cancel()


def scores_of(opinions: Sequence[Opinion | None], device: torch.device) -> Tensor:
    values = [torch.nan if one is None else one.value for one in opinions]
    return torch.tensor(values, dtype=torch.float32, device=device)


def words_of(opinions: Sequence[Opinion | None]) -> list[str]:
    return ["no answer could be read" if one is None else one.words for one in opinions]


def shrunk(image: Tensor, side: int | None) -> Image.Image:
    """An image as it is shown to the model, its longer side at most ``side``."""
    picture = to_pil(image)
    if side is not None and max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return picture
