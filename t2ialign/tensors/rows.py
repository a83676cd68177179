"""Which image each row of a layer's input belongs to.

Batched populations give every image of a batch its own weights, so a LoRA layer must know whose row it sees. Most
networks keep rows = images; classifier-free guidance stacks copies of the batch; autoregressive models may pack the
text tokens of all images into one axis. A backend that packs announces it::

    with rows.announce(image_of_token):   # (tokens,) integer tensor
        self.text_projection(packed)      # (tokens, C)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

#: Innermost last. A list and no ContextVar, which torch.compile cannot trace.
_announced: list[Tensor] = []


@contextmanager
def announce(image_index: Tensor) -> Iterator[None]:
    """Inside, row j of every adapted layer's input belongs to image ``image_index[j]`` of the current batch."""
    _announced.append(image_index)
    try:
        yield
    finally:
        _announced.pop()


def image_index() -> Tensor | None:
    """The announced index, or None where rows are whole copies of the batch in image order."""
    return _announced[-1] if _announced else None
