"""Class-conditional models take a class; specs and rewards speak in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from t2ialign import UsageError
from t2ialign.errors import nearest
from t2ialign.spec import prompts

PHOTO = "a photo of "
IMAGENET = Path(__file__).with_name("imagenet.txt")


class ClassNames:
    """Names of classes 0, 1, 2, ...

    Args:
        names: distinct, whatever their case.
        prefix: what stands before a name in the text that rewards see.
    """

    def __init__(self, names: Sequence[str], prefix: str = "") -> None:
        self.names = list(names)
        self.prefix = prefix
        self._index = {name.lower(): index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def text(self, index: int) -> str:
        """The prompt that rewards see."""
        return self.prefix + self.names[index]

    def find(self, prompt: str) -> int:
        """The class that a prompt asks for: its number, its name, or "a photo of " and its name.

        Raises:
            UsageError: there is none; names the nearest one.
        """
        word = " ".join(prompt.split())
        if word.isdecimal():
            if int(word) < len(self.names):
                return int(word)
            raise UsageError(f"prompt '{prompt}': class numbers go from 0 to {len(self.names) - 1}")
        name = word.lower()
        for candidate in (name, name.removeprefix(PHOTO)):
            if candidate in self._index:
                return self._index[candidate]
        near = nearest(name.removeprefix(PHOTO), self._index)
        hint = f"; did you mean '{self.names[self._index[near]]}'?" if near else "."
        raise UsageError(
            f"prompt '{prompt}' is no class of this model{hint} A prompt is a class number (0 to"
            f" {len(self.names) - 1}), a class name such as '{self.names[0]}', or '{PHOTO}' and a name"
        )


def imagenet() -> ClassNames:
    """The 1000 classes of ILSVRC 2012."""
    return ClassNames(prompts.read(IMAGENET), PHOTO)


def read_classes(path: Path, count: int) -> ClassNames:
    """Names from a JSON list beside a checkpoint of its own classes.

    Raises:
        UsageError: missing, no list of ``count`` distinct names.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"checkpoint has no readable {path.name}: {error}") from error
    if not isinstance(names, list) or len({str(name).lower() for name in names}) != count or len(names) != count:
        raise UsageError(f"{path} must be a list of {count} distinct class names")
    return ClassNames([str(name) for name in names])
