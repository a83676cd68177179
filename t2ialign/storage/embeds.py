"""Encoded prompts on disk, by content, so that a text encoder is loaded only for prompts it has never seen."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from t2ialign.tensors.conditioning import Conditioning

log = logging.getLogger(__name__)

#: One prompt's tensors, without padding: name -> (T, ...) or any fixed shape.
Row = dict[str, Tensor]


def cache_root() -> Path:
    """``$T2IALIGN_CACHE``, or ``t2ialign`` in the platform's cache folder."""
    if chosen := os.environ.get("T2IALIGN_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path("~/Library/Caches")
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return base.expanduser() / "t2ialign"


class EmbedsCache:
    """One safetensors file per prompt in ``<cache root>/embeds/<encoder>/<prompt>.safetensors``.

    Args:
        identity: everything besides the prompt that decides an embedding (the encoder's fingerprint and dtype, the
            prompt template, lengths, library versions): JSON values. Another identity is another folder.
    """

    def __init__(self, identity: Mapping[str, object]) -> None:
        self.folder = cache_root() / "embeds" / _digest(json.dumps(identity, sort_keys=True))

    def fetch(
        self,
        prompts: Sequence[str],
        encode_missing: Callable[[list[str]], Iterable[Row]],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Row]:
        """Rows of all prompts, on the CPU.

        Args:
            prompts: repeats are welcome.
            encode_missing: called at most once, with the distinct prompts that have no readable file; yields their
                rows in order. A generator that loads the encoder, and drops it at its end, keeps memory low.
            on_progress: called with (encoded so far, to encode).
        """
        distinct = list(dict.fromkeys(prompts))
        rows = {prompt: row for prompt in distinct if (row := self._read(prompt)) is not None}
        missing = [prompt for prompt in distinct if prompt not in rows]
        if missing:
            log.info("encoding %d of %d prompts", len(missing), len(distinct))
            for done, (prompt, row) in enumerate(zip(missing, encode_missing(missing), strict=True), start=1):
                rows[prompt] = {name: tensor.detach().to("cpu").contiguous() for name, tensor in row.items()}
                self._write(prompt, rows[prompt])
                on_progress(done, len(missing))
        return [rows[prompt] for prompt in prompts]

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{_digest(prompt)}.safetensors"

    def _read(self, prompt: str) -> Row | None:
        """The stored row; None when there is none or its file is damaged."""
        path = self._path(prompt)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("cached embedding %s is unreadable (%s): encoding it again", path, error)
            return None

    def _write(self, prompt: str, row: Row) -> None:
        """Written under another name and renamed, so that a reader never sees half a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(prompt)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(row, temporary, metadata={"prompt": prompt})
        temporary.replace(path)


def assemble(prompts: Sequence[str], rows: Sequence[Row], masks: Mapping[str, str]) -> Conditioning:
    """Stack rows to a conditioning; ragged tensors are padded with zeros and get a mask.

    Args:
        prompts: B texts.
        rows: B rows with the same names.
        masks: names of the ragged tensors (T_i, ...) -> names of their masks, int64 (B, max T), 1 = real.
    """
    tensors: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in masks:
            tensors[name] = pad_sequence(values, batch_first=True)
            ones = [torch.ones(len(value), dtype=torch.int64) for value in values]
            tensors[masks[name]] = pad_sequence(ones, batch_first=True)
        else:
            tensors[name] = torch.stack(values)
    return Conditioning(tuple(prompts), tensors)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
