"""Encoded prompts on disk, by content, so that a text encoder is loaded only for prompts it has never seen."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from t2ialign.foreign import shown, tensor_header
from t2ialign.storage.tensor_files import write_tensors
from t2ialign.tensors.conditioning import Conditioning

log = logging.getLogger(__name__)

#: One prompt's tensors, without padding: name -> (T, ...) or any fixed shape.
Row = dict[str, Tensor]
#: Called with (encoded so far, to encode) by every cache.
watchers: list[Callable[[int, int], None]] = []
#: Of the files; another number is another folder.
LAYOUT = 2
#: Folders of which was said that they cannot be written.
_told: set[Path] = set()


def cache_root() -> Path:
    """``$T2IALIGN_CACHE``, or ``t2ialign`` in the platform's cache folder; among temporary files for users without a
    home, as containers have them.
    """
    if chosen := os.environ.get("T2IALIGN_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path("~/Library/Caches")
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return base.expanduser() / "t2ialign"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "t2ialign"


class EmbedsCache:
    """One safetensors file per prompt in ``<cache root>/embeds/<encoder>/<prompt>.safetensors``.

    Args:
        identity: everything besides the prompt that decides an embedding (the encoder's fingerprint and dtype, the
            prompt template, lengths, library versions): JSON values. Another identity is another folder.
        names: the tensors of a row; a file with others is written anew. Default: any.
    """

    def __init__(self, identity: Mapping[str, object], names: Iterable[str] | None = None) -> None:
        self.names = None if names is None else set(names)
        self.folder = cache_root() / "embeds" / _digest(json.dumps([LAYOUT, identity], sort_keys=True))

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
                for watch in (on_progress, *watchers):
                    watch(done, len(missing))
        return [rows[prompt] for prompt in prompts]

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{_digest(prompt)}.safetensors"

    def _read(self, prompt: str) -> Row | None:
        """The stored row; None when there is none that could be used."""
        path = self._path(prompt)
        try:
            told = tensor_header(path).get("__metadata__", {})
            row = load_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (SafetensorError, OSError, ValueError) as error:
            fault = f"is unreadable ({shown(error, 200)})"
        else:
            if told.get("prompt") != prompt or told.get("digest") != _content(row):
                fault = "is not what was written there"
            elif self.names is not None and row.keys() != self.names:
                fault = f"holds {', '.join(sorted(row)) or 'nothing'}, not {', '.join(sorted(self.names))}"
            elif bad := [name for name, tensor in row.items() if not bool(tensor.isfinite().all())]:
                fault = f"has numbers in '{bad[0]}' that are not finite"
            else:
                return row
        log.warning("cached embedding %s %s: encoding it again", path, fault)
        return None

    def _write(self, prompt: str, row: Row) -> None:
        """Without the cache, a run goes on: it has the row in memory."""
        path = self._path(prompt)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.rmtree(path)
            write_tensors(path, row, {"prompt": prompt, "digest": _content(row)})
        except OSError as error:
            root = cache_root()
            if root not in _told:
                _told.add(root)
                log.warning(
                    "prompts are encoded again each time: the cache %s cannot be written (%s); T2IALIGN_CACHE names"
                    " another folder",
                    root,
                    error.strerror or error,
                )


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


def _content(row: Row) -> str:
    """A hash of names, types, shapes and numbers."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(row.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
