"""Scores from an HTTP service, for anything that runs elsewhere; the protocol is ``t2ialign.serve.protocol``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from weakref import ref

import torch
from torch import Tensor

from t2ialign.parts.reward import Reward
from t2ialign.serve import protocol
from t2ialign.tensors.batching import split
from t2ialign_rewards.config import RemoteConfig
from t2ialign_rewards.service import Patience, Service, Wrong, bearer

Answers = list[Future[list[float]]]


class Remote(Reward):
    """Scores from an HTTP service. Not differentiable."""

    Config = RemoteConfig
    elsewhere = True

    def __init__(self, config: RemoteConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self._begun: tuple[ref[Tensor], list[str], Answers] | None = None

    def begin(self, images: Tensor, prompts: Sequence[str]) -> None:
        self._begun = (ref(images), list(prompts), self._ask(images, prompts))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), float32.

        Raises:
            RewardError: the service refuses, or its answers are wrong.
            Unavailable: no server could be reached for as long as the options say.
        """
        begun, self._begun = self._begun, None
        known = begun is not None and begun[0]() is images and begun[1] == list(prompts)
        answers = begun[2] if begun and known else self._ask(images, prompts)
        try:
            scores = [score for answer in answers for score in answer.result()]
        finally:
            for answer in answers:  # of no use once one has failed
                answer.cancel()
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def _ask(self, images: Tensor, prompts: Sequence[str]) -> Answers:
        pictures, config = images.detach().cpu(), self.config
        return [self._request(pictures[rows], prompts[rows]) for rows in split(len(images), config.batch)]

    def _request(self, images: Tensor, prompts: Sequence[str]) -> Future[list[float]]:
        config, missing = self.config, self.may_miss

        def body() -> tuple[bytes, str]:
            send = config.send
            if send == "auto":
                send = "uint8" if self.service.ours else "png"
            return protocol.ask(images, prompts, send, config.reward, missing)

        def read(answer: bytes) -> list[float]:
            try:
                return protocol.answered(answer, len(images), missing)
            except protocol.ProtocolError as error:
                raise Wrong(f"the answer {error}") from error

        return self.service.begin(body, read)

    @cached_property
    def service(self) -> Service:
        config = self.config
        urls = [config.url] if isinstance(config.url, str) else config.url
        patience = Patience(
            config.timeout, config.silence or config.timeout, config.retries, config.backoff, config.wait
        )
        headers = bearer(config.token_variable, self.label)
        return Service(urls, patience, headers, config.concurrency, introduced=config.send == "auto")
