"""One thread that scores what waits, several requests at once where they fit together."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError

import torch

from t2ialign.parts.reward import Reward
from t2ialign.serve.protocol import Question

log = logging.getLogger(__name__)


class Full(Exception):
    """More waits already than the server takes."""


class Batcher:
    """Scores questions in the order in which they came, on one thread: rewards need not be safe for several.

    Requests for one reward, of one image size, are scored together when they wait at the same time; a score does not
    depend on the images beside it.

    Args:
        rewards: by name.
        most_together: images of one call of a reward.
        most_waiting: images that may wait.
    """

    def __init__(self, rewards: Mapping[str, Reward], most_together: int, most_waiting: int) -> None:
        self.rewards, self.most_together, self.most_waiting = rewards, most_together, most_waiting
        self._jobs: deque[tuple[str, Question, Future[list[float]]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="rewards", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return sum(len(question.prompts) for _, question, _ in list(self._jobs))

    def submit(self, reward: str, question: Question) -> Future[list[float]]:
        """
        Raises:
            Full: try again later.
        """
        future: Future[list[float]] = Future()
        with self._changed:
            if self._closing or self.waiting + len(question.prompts) > max(self.most_waiting, len(question.prompts)):
                raise Full
            self._jobs.append((reward, question, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Score what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            name, questions, futures = batch
            try:
                scores = self._score(name, questions)
            except Exception as error:  # it is the asking client's, and the server goes on
                for future in futures:
                    _settle(future, error)
                continue
            first = 0
            for question, future in zip(questions, futures, strict=True):
                count = len(question.prompts)
                _settle(future, scores[first : first + count])
                first += count

    def _next(self) -> tuple[str, list[Question], list[Future[list[float]]]] | None:
        """The next requests that are scored together; None at the end."""
        with self._changed:
            while True:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if not self._jobs:
                    return None
                name, first, future = self._jobs.popleft()
                if future.set_running_or_notify_cancel():
                    break
            questions, futures, count = [first], [future], len(first.prompts)
            later: deque[tuple[str, Question, Future[list[float]]]] = deque()
            while self._jobs:
                job = self._jobs.popleft()
                other, question, its = job
                fits = other == name and question.images.shape[1:] == first.images.shape[1:]
                if not fits or count + len(question.prompts) > self.most_together:
                    later.append(job)
                elif its.set_running_or_notify_cancel():
                    questions.append(question)
                    futures.append(its)
                    count += len(question.prompts)
            self._jobs = later
            return name, questions, futures

    @torch.no_grad()
    def _score(self, name: str, questions: list[Question]) -> list[float]:
        reward = self.rewards[name]
        images = torch.cat([question.images for question in questions]).to(reward.device)
        prompts = [prompt for question in questions for prompt in question.prompts]
        scores: list[float] = []
        for first in range(0, len(prompts), self.most_together):
            rows = slice(first, first + self.most_together)
            scores += reward.score(images[rows], prompts[rows]).float().tolist()
        if len(scores) != len(prompts):
            raise ValueError(f"{reward.label} gave {len(scores)} scores for {len(prompts)} images")
        return scores


def _settle(future: Future[list[float]], outcome: list[float] | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except (CancelledError, InvalidStateError):  # the client is gone
        pass
