"""Scores from an HTTP service, for anything that runs elsewhere.

Request (POST, JSON): {"images": [PNG in base64, ...], "prompts": [text, ...]}. Answer: {"scores": [number, ...]}.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import time
from collections.abc import Sequence
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from t2ialign.errors import RewardError, UsageError
from t2ialign.parts.reward import Reward
from t2ialign.spec.prompts import data_of
from t2ialign.storage.images import to_pil
from t2ialign.tensors.batching import split
from t2ialign_rewards.config import RemoteConfig

log = logging.getLogger(__name__)


def png_base64(image: Tensor) -> str:
    """(3, H, W) in [0, 1] as an 8-bit PNG in base64."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Remote(Reward):
    """Scores from an HTTP service. Not differentiable."""

    Config = RemoteConfig

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures = images.cpu()
        scores: list[float] = []
        for rows in split(len(images), self.config.batch):
            request = {
                "images": [png_base64(image) for image in pictures[rows]],
                "prompts": [str(prompt) for prompt in prompts[rows]],
                "metadata": [dict(data_of(prompt)) for prompt in prompts[rows]],
            }
            scores += self._scores(self._post(json.dumps(request).encode()), len(pictures[rows]))
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def _scores(self, answer: bytes, count: int) -> list[float]:
        try:
            scores = [float(score) for score in json.loads(answer)["scores"]]
        except (ValueError, KeyError, TypeError) as error:
            shown = answer[:200].decode(errors="replace")
            raise RewardError(f'{self.config.url} did not answer {{"scores": [...]}} but: {shown}') from error
        if len(scores) != count:
            raise RewardError(f"{self.config.url} gave {len(scores)} scores for {count} images")
        return scores

    def _post(self, body: bytes) -> bytes:
        """The answer to one request, with further tries where a later one may do better.

        Raises:
            RewardError: the service refuses, or no try succeeded.
        """
        request = Request(self.config.url, body, {"Content-Type": "application/json", **self._authorization()})
        tries = self.config.retries + 1
        for attempt in range(tries):
            if attempt:
                time.sleep(self.config.backoff * 2 ** (attempt - 1))
            try:
                with urlopen(request, timeout=self.config.timeout) as response:
                    return response.read()
            except HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code != 429 and error.code < 500:
                    raise RewardError(f"{self.config.url} refused the request: {reason}") from error
            except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            log.warning("%s: %s (try %d of %d)", self.config.url, reason, attempt + 1, tries)
        raise RewardError(f"{self.config.url} failed {tries} times, at last with: {reason}")

    def _authorization(self) -> dict[str, str]:
        name = self.config.token_variable
        if name is None:
            return {}
        if name not in os.environ:
            raise UsageError(f"remote reward: environment variable {name} (token_variable) is not set")
        return {"Authorization": f"Bearer {os.environ[name]}"}
