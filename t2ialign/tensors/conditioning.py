"""What a backend's generator is conditioned on: prompts and their encoded tensors, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """B encoded prompts.

    Attributes:
        prompts: B texts, as rewards should see them.
        tensors: name -> (B, ...), for example prompt_embeds (B, L, D) and prompt_attention_mask (B, L).
    """

    prompts: tuple[str, ...]
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.shape[0] != len(self.prompts):
                raise ValueError(f"{name} has {tensor.shape[0]} rows for {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Conditioning:
        """Rows by slice, list or integer tensor; repeats are welcome. A slice shares its memory."""
        if isinstance(index, slice):
            return Conditioning(self.prompts[index], {name: tensor[index] for name, tensor in self.tensors.items()})
        rows = torch.as_tensor(index, dtype=torch.long)
        prompts = tuple(self.prompts[i] for i in rows.tolist())
        return Conditioning(
            prompts, {k: t.index_select(0, rows.to(t.device, non_blocking=True)) for k, t in self.tensors.items()}
        )

    def to(self, device: torch.device | str) -> Conditioning:
        return Conditioning(self.prompts, {name: tensor.to(device) for name, tensor in self.tensors.items()})
