"""What a text encoder does not see of a prompt: its tokenizer's files tell, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


#: Special tokens and frames take less; a token is a byte at least, so that most prompts need no tokenizer.
SLACK = 32


@dataclass(frozen=True)
class TextLimit:
    """How much of a prompt a model reads.

    Attributes:
        tokenizer: its folder, below the checkpoint's.
        tokens: most tokens, special ones included; None: what the tokenizer itself allows.
        longer: what would let it read more, as a half sentence; empty where nothing would.
        frame: text around a prompt that counts too, with ``{}`` in the prompt's place.
    """

    tokenizer: str = "tokenizer"
    tokens: int | None = None
    longer: str = ""
    frame: str = "{}"

    def own(self, folder: Path) -> int | None:
        """What the tokenizer itself allows, its ``model_max_length``; some have an absurd one, which is none."""
        file = folder / self.tokenizer / "tokenizer_config.json"
        try:
            limit = json.loads(file.read_text(encoding="utf-8")).get("model_max_length")
        except (OSError, ValueError, AttributeError):
            return None
        return int(limit) if isinstance(limit, int | float) and 0 < limit < 1e6 else None


def cut_prompts(
    reader: str,
    limit: TextLimit,
    folder: Path,
    prompts: Sequence[str],
    load: Callable[[Path], Tokenizer | None] | None = None,
) -> list[str]:
    """One remark if some of the prompts are longer than ``reader`` takes; none where no tokenizer lies in ``folder``.

    Args:
        reader: who cuts them, such as "the text encoder".
        folder: the local checkpoint.
        load: opens the folder of a tokenizer without tokenizer.json.
    """
    most = limit.tokens or limit.own(folder)
    if most is None:
        return []
    texts = dict.fromkeys(map(str, prompts))
    suspects = [text for text in texts if len(text.encode("utf-8", "replace")) + SLACK > most]
    tokenizer = _tokenizer(folder / limit.tokenizer, load) if suspects else None
    if tokenizer is None:
        return []
    before, _, after = limit.frame.partition("{}")
    frame = len(tokenizer.encode(before + after).ids) if before + after else tokenizer.num_special_tokens_to_add(False)
    lost = {}
    for text in suspects:
        found = tokenizer.encode(text, add_special_tokens=False)
        if len(found.ids) + frame > most:
            lost[text] = text[found.offsets[max(0, most - frame)][0] :].strip()
    if not lost:
        return []
    text, tail = next(iter(lost.items()))
    count = sum(str(prompt) in lost for prompt in prompts)
    return [
        f"{reader} reads {most} tokens of a prompt: {count} of {len(prompts)} prompts are cut, the first,"
        f" '{_short(text)}', before '{_short(tail)}'" + (f"; {limit.longer}" if limit.longer else "")
    ]


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@lru_cache(maxsize=4)
def _tokenizer(place: Path, load: Callable[[Path], Tokenizer | None] | None) -> Tokenizer | None:
    """Without truncation; None where there is none that can be read: whoever encodes will tell what is wrong."""
    try:
        if (place / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            found: Tokenizer | None = Tokenizer.from_file(str(place / "tokenizer.json"))
        else:
            found = load(place) if load and place.is_dir() else None
    except Exception:  # tokenizers raises nothing narrower
        return None
    if found is not None:
        found.no_truncation()
        found.no_padding()
    return found
