"""Prompts to T5 features: encoded once, cached on disk, packed without padding."""

from __future__ import annotations

import gc
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from t2ialign import UsageError, checkpoints
from t2ialign.storage.embeds import EmbedsCache, Row, assemble
from t2ialign.tensors import rows
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning

#: What the authors append to prompts about people.
FLATTERY = ". very smooth faces, good looking faces, face to the camera, perfect facial features"
_PEOPLE = re.compile(
    r"\b((wo)?m[ae]n|boys?|girls?|child(ren)?|persons?|people|humans?|adults?|teenagers?|employe[er]s?|workers?"
    r"|(grand)?(mother|father|son|daughter)s?|sisters?|brothers?)\b",
    re.IGNORECASE,
)


def flatter(prompt: str) -> str:
    """The prompt, with the authors' words for good-looking faces if it is about people (whole words only)."""
    return prompt + FLATTERY if _PEOPLE.search(prompt) else prompt


@dataclass(frozen=True)
class TextEncoder:
    """A T5 encoder that is loaded only to encode what the cache does not have.

    Attributes:
        reference: hub id or folder.
        dtype: of the encoder.
        length: most tokens kept, the end token included.
        micro_batch: texts that it takes at once.
    """

    reference: str
    dtype: str
    length: int
    device: torch.device
    micro_batch: int = 8

    def encode(self, prompts: Sequence[str], texts: Sequence[str]) -> Conditioning:
        """Conditioning with "text" (B, T, C) and "text_mask" (B, T).

        Args:
            prompts: what rewards see.
            texts: what the encoder sees.
        """
        patterns = ("*.json", "*.safetensors", "*.model", "*.txt")
        folder = checkpoints.resolve(self.reference, patterns=patterns)
        cache = EmbedsCache(
            {
                "encoder": checkpoints.fingerprint(folder, ("",)),
                "dtype": self.dtype,
                "length": self.length,
                "transformers": importlib.metadata.version("transformers"),
            },
            ["text"],
        )
        found = cache.fetch(texts, lambda missing: self._run(folder, missing))
        return assemble(prompts, found, {"text": "text_mask"})

    @torch.no_grad()
    def _run(self, folder: Path, texts: list[str]) -> Iterator[Row]:
        """Load, encode, drop."""
        from transformers import AutoTokenizer, T5EncoderModel

        try:
            checkpoints.check_model(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = T5EncoderModel.from_pretrained(folder, dtype=getattr(torch, self.dtype), local_files_only=True)
        except (OSError, ValueError, UsageError) as error:
            raise UsageError(f"text encoder '{self.reference}' cannot be loaded: {error}") from error
        model = model.to(self.device).eval()
        for part in split(len(texts), self.micro_batch):
            inputs = tokenizer(
                texts[part], padding=True, truncation=True, max_length=self.length, return_tensors="pt"
            ).to(self.device)
            mask = inputs["attention_mask"]
            features = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
            for row, length in zip(features, mask.sum(1).tolist(), strict=True):
                yield {"text": row[:length]}
        del model
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class PackedText:
    """The text tokens of R rows, one after another without padding.

    Attributes:
        tokens: float32 (T, C), T the sum of all lengths.
        row: row of each token, int64 (T,).
        place: place of each token in its row, int64 (T,).
        rows, length: number of rows; tokens of the longest one.
        image: image of the batch that each token belongs to, int64 (T,); rows may be several copies of the batch.
    """

    tokens: Tensor
    row: Tensor
    place: Tensor
    rows: int
    length: int
    image: Tensor

    @classmethod
    def pack(cls, text: Tensor, mask: Tensor, unconditional: Tensor | None = None) -> PackedText:
        """Pack padded text (B, L, C) with its mask (B, L).

        Args:
            unconditional: learned tokens (most, C). When given, B rows follow that have the first tokens of these in
                place of the prompt's, as many as the prompt has.
        """
        row, place = mask.bool().nonzero(as_tuple=True)
        tokens, image, count = text[row, place].float(), row, len(text)
        if unconditional is not None:
            tokens = torch.cat([tokens, unconditional[place]])
            row, place, image = torch.cat([row, row + count]), place.repeat(2), image.repeat(2)
            count *= 2
        return cls(tokens, row, place, count, text.shape[1], image)

    def through(self, layer: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Apply a layer to packed tokens (T, ...), and tell adapted layers whose tokens they are."""
        with rows.announce(self.image):
            return layer(tokens)

    def pad(self, tokens: Tensor) -> Tensor:
        """(T, ...) to (R, L, ...), zeros where a row has no token."""
        padded = tokens.new_zeros(self.rows, self.length, *tokens.shape[1:])
        padded[self.row, self.place] = tokens
        return padded

    @property
    def mask(self) -> Tensor:
        """True where a row has a token: bool (R, 1, 1, L), as attention wants it."""
        return self.pad(torch.ones_like(self.row, dtype=torch.bool))[:, None, None]
