"""A bench's folder: what was asked, images, one line for every image drawn and scored. No torch.

Files are whole at any moment, so that a killed bench goes on: of finished images at most the last is drawn again, the
one between its file and its line. Every process writes lines of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.storage import files

Key = tuple[str, str]


class BenchFolder:
    """``bench.json``, ``images/<variant>/...``, ``drawn.<rank>.jsonl``, ``scores.<rank>.jsonl``, and the results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = path / "images"
        self.settings_file = path / "bench.json"

    def begin(self, settings: Mapping[str, Any], variants: Mapping[str, Any], rewards: Mapping[str, Any]) -> None:
        """Record what is asked, or find that the folder is of the same and may go on. Variants and rewards may join.

        Raises:
            UsageError: the folder is of something else; names what.
        """
        known: dict[str, Any] = {"settings": dict(settings), "variants": {}, "rewards": {}}
        if self.settings_file.exists():
            known = json.loads(self.settings_file.read_text(encoding="utf-8"))
        elif self.path.exists() and places.listed(self.path):
            raise UsageError(f"--out {self.path}: is not empty and no bench; choose another folder")
        asked = {"settings": {"": settings}, "variants": variants, "rewards": rewards}
        before = {**known, "settings": {"": known["settings"]}}
        for part, new in asked.items():
            for name, value in new.items():
                old = before[part].get(name)
                if old is not None and old != (value := json.loads(json.dumps(value))):
                    other = next(key for key in {**old, **value} if old.get(key) != value.get(key))
                    what = f"{part[:-1]} '{name}'" if name else "bench"
                    raise UsageError(
                        f"--out {self.path}: holds a {what} with {other} = {json.dumps(old.get(other))}, and not"
                        f" {json.dumps(value.get(other))}; choose another folder"
                    )
        self.images.mkdir(parents=True, exist_ok=True)
        known["variants"] |= variants
        known["rewards"] |= rewards
        files.write_json(self.settings_file, known)

    def drawn(self) -> dict[Key, dict[str, Any]]:
        """(variant, file) -> line of every image that is there."""
        lines = self._lines("drawn")
        return {key: line for key, line in lines.items() if (self.images / key[0] / key[1]).is_file()}

    def scores(self) -> dict[Key, dict[str, float | None]]:
        """(variant, file) -> reward -> score."""
        return {key: line["scores"] for key, line in self._lines("scores").items()}

    def _lines(self, name: str) -> dict[Key, dict[str, Any]]:
        found: dict[Key, dict[str, Any]] = {}
        for file in sorted(self.path.glob(f"{name}.*.jsonl")):
            for line in files.read_json_lines(file):
                key = line["variant"], line["file"]
                if "scores" in line:  # another reward may have come later
                    line["scores"] = {**found.get(key, {}).get("scores", {}), **line["scores"]}
                found[key] = line
        return found


class Lines:
    """A file of lines that one process appends to; a torn last line of a killed one is taken off first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                files.write_text(path, data[: data.rfind(b"\n") + 1].decode())

    def add(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
