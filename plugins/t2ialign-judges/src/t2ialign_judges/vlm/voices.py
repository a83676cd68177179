"""Who is asked: an API that speaks OpenAI's chat protocol, or a model of transformers in this process."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image

from t2ialign import checkpoints
from t2ialign.errors import RewardError, UsageError
from t2ialign.serve.protocol import JSON, shown
from t2ialign_judges.vlm.answers import Reply
from t2ialign_rewards import weights
from t2ialign_rewards.service import Service, Wrong

#: The most that every server of this protocol gives.
TOP = 20


@dataclass(frozen=True)
class Question:
    """Images and a text for a model.

    Attributes:
        probabilities: whether the first token's are wanted, and no more of the answer.
        schema: of the JSON that is wanted; None: text.
    """

    images: Sequence[Image.Image]
    text: str
    probabilities: bool
    schema: Mapping[str, Any] | None
    seed: int


class Voice(Protocol):
    def begin(self, question: Question) -> Future[Reply]:
        """Start to ask."""


class Endpoint:
    """A chat API: vLLM, SGLang, Ollama, or one that is paid for.

    Args:
        settings: fields of every request, ``model`` among them; they replace ours.
        most_tokens: of an answer that is no single word.
    """

    def __init__(self, service: Service, settings: Mapping[str, Any], most_tokens: int) -> None:
        self.service, self.settings, self.most_tokens = service, settings, most_tokens

    def begin(self, question: Question) -> Future[Reply]:
        return self.service.begin(lambda: (self.request(question), JSON), reader(question.probabilities))

    def request(self, question: Question) -> bytes:
        pictures = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in question.images]
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": question.text}]}],
            "max_tokens": 1 if question.probabilities else self.most_tokens,
            "seed": question.seed,
        }
        if question.probabilities:
            fields |= {"logprobs": True, "top_logprobs": TOP}
        if question.schema is not None:
            named = {"name": "answer", "schema": dict(question.schema), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": named}
        return json.dumps({**fields, **self.settings}).encode()


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def reader(probabilities: bool) -> Callable[[bytes], Reply]:
    """What reads the body of an answer."""

    def read(body: bytes) -> Reply:
        try:
            (choice,) = json.loads(body)["choices"]
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError("content is no text")
            if not probabilities:
                return Reply(text)
            entries = (choice.get("logprobs") or {}).get("content")
            top = {entry["token"]: float(entry["logprob"]) for entry in entries[0]["top_logprobs"]} if entries else {}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise Wrong(f"the answer is no chat completion but: {shown(body)}") from error
        if not top:
            raise RewardError("the service gives no log-probabilities, which form = 'yes' needs; use form = 'number'")
        return Reply(text, top)

    return read


class Local:
    """A vision-language model of transformers; one question at a time."""

    def __init__(
        self, model: str, revision: str | None, dtype: str, device: torch.device, temperature: float, most_tokens: int
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = weights.model_folder(model, revision)
        checkpoints.check_model(folder)
        try:
            network = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{folder} is no vision-language model of transformers: {error}") from error
        self.network = network.eval().requires_grad_(False).to(device)
        self.processor = AutoProcessor.from_pretrained(folder)
        self.temperature, self.most_tokens = temperature, most_tokens

    @torch.no_grad()
    def begin(self, question: Question) -> Future[Reply]:
        done: Future[Reply] = Future()
        done.set_result(self._reply(question))
        return done

    def _reply(self, question: Question) -> Reply:
        content = [*({"type": "image"} for _ in question.images), {"type": "text", "text": question.text}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=[text], images=list(question.images), return_tensors="pt").to(self.network.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.network.dtype)
        if question.probabilities:
            logits = self.network(**inputs).logits[0, -1].float().log_softmax(-1)
            best = logits.topk(min(1000, len(logits)))
            words = [self.processor.tokenizer.decode([token]) for token in best.indices.tolist()]
            top: dict[str, float] = {}
            for word, value in zip(words, best.values, strict=True):  # two tokens may read alike
                top[word] = torch.logaddexp(torch.tensor(top.get(word, -torch.inf)), value.cpu()).item()
            return Reply(words[0], top)
        draw = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        with torch.random.fork_rng():
            torch.manual_seed(question.seed)
            written = self.network.generate(**inputs, max_new_tokens=self.most_tokens, **draw)
        answer = written[0, inputs["input_ids"].shape[1] :]
        return Reply(self.processor.tokenizer.decode(answer, skip_special_tokens=True))
