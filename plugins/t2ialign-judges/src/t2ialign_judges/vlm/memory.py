"""What was asked before is not asked again: opinions by content, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from t2ialign.storage import files
from t2ialign.storage.embeds import cache_root
from t2ialign_judges.vlm.answers import Opinion

#: Opinions in memory.
MOST = 20_000


class Memory:
    """Opinions in ``<cache root>/judges/<how it is asked>/<what is asked>.json``, or in memory alone.

    Args:
        identity: everything besides images and prompt that decides an opinion, as JSON values.
    """

    def __init__(self, identity: Mapping[str, Any], on_disk: bool) -> None:
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        self.folder: Path | None = cache_root() / "judges" / name if on_disk else None
        self._known: dict[str, Opinion] = {}

    def recall(self, key: str) -> Opinion | None:
        if key not in self._known and self.folder is not None and (file := self.folder / f"{key}.json").is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                self._known[key] = Opinion(float(found["value"]), str(found["words"]))
                self._forget()
            except (ValueError, KeyError, TypeError):  # torn by other hands: asked again
                return None
        return self._known.get(key)

    def keep(self, key: str, opinion: Opinion) -> None:
        self._known[key] = opinion
        self._forget()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / f"{key}.json", {"value": opinion.value, "words": opinion.words})

    def _forget(self) -> None:
        """The oldest, once there are too many."""
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]


def key_of(prompt: str, *images: Image.Image) -> str:
    """A name for a prompt and the pixels of some images."""
    digest = hashlib.sha256(prompt.encode())
    for image in images:
        digest.update(f"\0{image.size}\0".encode() + image.tobytes())
    return digest.hexdigest()
