"""Prompts to token ids, cut where the models' authors cut."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2ialign.errors import UsageError
from t2ialign.spec import checkpoints

log = logging.getLogger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


class Tokenizer:
    """One prompt to its token ids, begin and end tokens included.

    Attributes:
        limit: most tokens of a prompt. A longer one loses its tail and keeps its end token; the first time that
            happens is logged.
    """

    def __init__(self, tokenizer: Any, limit: int, clean: Callable[[str], str] = str) -> None:
        self._tokenizer = tokenizer
        self._clean = clean
        self._warned = False
        self.limit = min(limit, tokenizer.model_max_length)

    @classmethod
    def load(cls, folder: Path, limit: int, clean: Callable[[str], str] = str) -> Tokenizer:
        """The tokenizer in a folder.

        Raises:
            UsageError: the folder has none.
        """
        from transformers import AutoTokenizer

        if not has_tokenizer(folder):
            raise UsageError(f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
        return cls(AutoTokenizer.from_pretrained(folder), limit, clean)

    def __call__(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer(self._clean(prompt), verbose=False)["input_ids"]
        if len(ids) > self.limit:
            if not self._warned:
                self._warned = True
                log.warning(
                    "a prompt of %d tokens is cut to the model's %d, here and in future: '%.60s...'",
                    len(ids),
                    self.limit,
                    prompt,
                )
            ids = ids[: self.limit - 1] + ids[-1:]
        return ids


def read_words(reference: str, who: str) -> str:
    """The text of a file that an option names.

    Raises:
        UsageError: it is no file; names ``who`` wants it.
    """
    path = checkpoints.local_path(reference)
    if path is None or not path.is_file():
        raise UsageError(f"{who}: rubric '{reference}' is no file")
    return path.read_text(encoding="utf-8")


def open_clip_clean(prompt: str) -> str:
    """What open_clip does to a text before its tokenizer: mend it (ftfy), unescape HTML twice, collapse white space."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
