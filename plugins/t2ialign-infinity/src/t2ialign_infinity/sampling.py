"""Next-scale sampling of bits: guidance, temperature, and one draw per bit from the image's own noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign_infinity.bits import BitQuantiser
from t2ialign_infinity.text import PackedText
from t2ialign_infinity.transformer import InfinityTransformer, TextContext
from t2ialign_var.layers import KeyValueCache, block_mask
from t2ialign_var.sampling import draw, keep_likely

#: (scale, logits (B, h w, n, 2)) -> bits (B, h w, n).
Choose = Callable[[int, Tensor], Tensor]
#: (scale, its embedded tokens (R, h w, D)) -> logits (R, h w, n, 2).
Predict = Callable[[int, Tensor], Tensor]
#: (layer, c (L,)): guidance of every token behind one block, see ``InfinityTransformer.predict``.
Inside = tuple[int, Tensor]


@dataclass(frozen=True)
class DrawBits:
    """Choose every bit by inverse CDF.

    Attributes:
        noise: unit Gaussian (B, L, n), one number per bit of all scales.
        tokens: tokens of every scale.
    """

    noise: Tensor
    tokens: list[int]
    top_k: int
    top_p: float

    def __call__(self, scale: int, logits: Tensor) -> Tensor:
        start = sum(self.tokens[:scale])
        own = self.noise[:, start : start + self.tokens[scale]]
        return draw(keep_likely(logits, self.top_k, self.top_p), own)


def with_cache(
    transformer: InfinityTransformer,
    context: TextContext,
    rotation: Tensor,
    tokens: list[int],
    inside: Inside | None = None,
) -> Predict:
    """Each scale is computed once; keys and values of the coarser ones are kept."""
    cache = KeyValueCache(transformer.depth, sum(tokens))

    def predict(scale: int, x: Tensor) -> Tensor:
        own = slice(sum(tokens[:scale]), sum(tokens[: scale + 1]))
        guidance = inside and (inside[0], inside[1][own])
        return transformer.predict(x, context, rotation[own], cache=cache, guidance=guidance)

    return predict


def without_cache(
    transformer: InfinityTransformer,
    context: TextContext,
    rotation: Tensor,
    tokens: list[int],
    inside: Inside | None = None,
) -> Predict:
    """All scales so far are computed again, under the mask of teacher forcing: the slow reference."""
    parts: list[Tensor] = []

    def predict(scale: int, x: Tensor) -> Tensor:
        parts.append(x)
        mask = block_mask(tokens[: scale + 1], x.device)
        guidance = inside and (inside[0], inside[1][: len(mask)])
        logits = transformer.predict(torch.cat(parts, dim=1), context, rotation[: len(mask)], mask, guidance=guidance)
        return logits[:, -tokens[scale] :]

    return predict


@torch.no_grad()
def sample_features(
    transformer: InfinityTransformer,
    quantiser: BitQuantiser,
    rotation: Tensor,
    text: tuple[Tensor, Tensor],
    guidance: Sequence[float],
    tau: Sequence[float],
    choose: Choose,
    predictor: Callable[..., Predict] = with_cache,
    insertion: int = 0,
) -> Tensor:
    """Generate scale by scale.

    Guidance at scale k: l = c_k l_c + (1 - c_k) l_u, on logits divided by tau_k, or on hidden states.

    Args:
        rotation: complex (L, hd / 2).
        text: padded features (B, T, C) and their mask (B, T).
        guidance: c_k of every scale; the unconditional half of the batch is left out when all are 1.
        tau: temperature of every scale.
        choose: from a scale's logits to its bits.
        predictor: how logits are computed, ``with_cache`` or ``without_cache``.
        insertion: 0 for guidance on the logits, -n on the hidden states behind the n-th block from the end.

    Returns:
        The accumulated map (B, d, H, W).
    """
    batch = len(text[0])
    copies = 1 if all(c == 1 for c in guidance) else 2
    packed = PackedText.pack(*text, transformer.cfg_uncond if copies == 2 else None)
    context = transformer.read(packed)
    inside = None
    if insertion and copies == 2:
        counts = torch.tensor(quantiser.tokens)
        inside = transformer.depth + insertion, torch.tensor(guidance).repeat_interleave(counts).to(text[0].device)
    predict = predictor(transformer, context, rotation, quantiser.tokens, inside)
    accumulated = quantiser.empty(batch, text[0].device)
    for scale in range(len(quantiser.ladder)):
        if scale == 0:
            x = transformer.embed(0, None, context.start)
        else:
            x = transformer.embed(scale, quantiser.at_scale(scale, accumulated), context.start).repeat(copies, 1, 1)
        logits = predict(scale, x) / tau[scale]
        if copies == 2:
            conditional, unconditional = logits.chunk(2)
            c = 1.0 if inside else guidance[scale]
            logits = c * conditional + (1 - c) * unconditional
        accumulated = accumulated + quantiser.contribution(scale, choose(scale, logits))
    return accumulated
