"""Next-scale sampling: guidance, filtering, and one draw per token that depends on its own image's noise alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign import seeding
from t2ialign_var.layers import KeyValueCache, block_mask
from t2ialign_var.quantiser import MultiScaleQuantiser
from t2ialign_var.transformer import VarTransformer

#: (scale, logits (B, p^2, V)) -> code vectors (B, p^2, C).
Choose = Callable[[int, Tensor], Tensor]
#: (scale, its embedded tokens (B, p^2, C)) -> logits (B, p^2, V).
Predict = Callable[[int, Tensor], Tensor]


def keep_likely(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set logits (..., V) outside the top-k, then outside the nucleus of probability p, to -inf.

    Ties with the k-th value survive; the likeliest one always does.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)
    return logits


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Sample by inverse CDF at u = Phi(noise).

    Args:
        logits: (..., V); -inf has probability 0.
        noise: unit Gaussian (...).

    Returns:
        int64 (...).
    """
    cdf = logits.softmax(-1).cumsum(-1)
    cdf = cdf / cdf[..., -1:]  # ends in exactly 1, so that every u < 1 falls on a code of positive probability
    uniform = torch.special.ndtr(noise.to(cdf.dtype)).clamp(max=1 - 2**-24)
    return torch.searchsorted(cdf, uniform[..., None].contiguous(), right=True).squeeze(-1)


@dataclass(frozen=True)
class DrawTokens:
    """Choose one code per token.

    Attributes:
        noise: unit Gaussian (B, L), one number per token of all scales.
    """

    quantiser: MultiScaleQuantiser
    noise: Tensor
    top_k: int
    top_p: float

    def __call__(self, scale: int, logits: Tensor) -> Tensor:
        return self.quantiser.embedding(self.tokens(scale, logits))

    def tokens(self, scale: int, logits: Tensor) -> Tensor:
        """The tokens themselves (B, p^2)."""
        sides = self.quantiser.patch_nums
        start = sum(p * p for p in sides[:scale])
        return draw(keep_likely(logits, self.top_k, self.top_p), self.noise[:, start : start + sides[scale] ** 2])


@dataclass(frozen=True)
class MixCodes:
    """Choose a Gumbel-softmax mixture of codes: VAR's "more smooth" pictures, which have no tokens.

    With r = k / (K - 1) the temperature is max(0.27 (1 - 0.95 r), 0.005) on logits (1 + r) l.

    Attributes:
        seeds: one per image, for the Gumbel noise.
    """

    quantiser: MultiScaleQuantiser
    seeds: Sequence[int]
    top_k: int
    top_p: float

    def __call__(self, scale: int, logits: Tensor) -> Tensor:
        ratio = scale / max(len(self.quantiser.patch_nums) - 1, 1)
        temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
        gumbel = torch.empty_like(logits, device="cpu")
        for row, seed in zip(gumbel, self.seeds, strict=True):
            row.exponential_(generator=seeding.generator(seeding.derive(seed, "more-smooth", scale))).log_().neg_()
        kept = keep_likely(logits, self.top_k, self.top_p)
        weights = ((kept * (1 + ratio) + gumbel.to(logits.device)) / temperature).softmax(-1)
        return weights @ self.quantiser.embedding.weight


def guided_logits(
    conditional: Tensor, unconditional: Tensor, scale: int | Tensor, scales: int, guidance: float
) -> Tensor:
    """(1 + t) l_c - t l_u with t = guidance k / (K - 1), which grows with the scale.

    Args:
        scale: k; a tensor broadcasts against the logits.
        scales: K.
    """
    t = guidance * scale / max(scales - 1, 1)
    return (1 + t) * conditional - t * unconditional


def with_cache(transformer: VarTransformer, condition: Tensor) -> Predict:
    """Each scale is computed once; keys and values of the coarser ones are kept."""
    cache = KeyValueCache(len(transformer.blocks), sum(transformer.tokens))
    return lambda scale, x: transformer.predict(x, condition, cache=cache)


def without_cache(transformer: VarTransformer, condition: Tensor) -> Predict:
    """All scales so far are computed again, under the mask of teacher forcing: the slow reference."""
    parts: list[Tensor] = []

    def predict(scale: int, x: Tensor) -> Tensor:
        parts.append(x)
        mask = block_mask(transformer.tokens[: scale + 1], x.device)
        return transformer.predict(torch.cat(parts, dim=1), condition, mask)[:, -x.shape[1] :]

    return predict


@torch.no_grad()
def sample_features(
    transformer: VarTransformer,
    quantiser: MultiScaleQuantiser,
    labels: Tensor,
    guidance: float,
    choose: Choose,
    predictor: Callable[[VarTransformer, Tensor], Predict] = with_cache,
) -> Tensor:
    """Generate scale by scale (arXiv 2404.02905, figure 4).

    Guidance grows with the scale: l = (1 + t) l_c - t l_u, t = guidance k / (K - 1).

    Args:
        labels: classes, int64 (B,).
        guidance: 0 does without the unconditional half of the batch.
        choose: from a scale's logits to its code vectors.
        predictor: how logits are computed, ``with_cache`` or ``without_cache``.

    Returns:
        The accumulated map (B, C, P, P).
    """
    copies = 2 if guidance > 0 else 1
    classes = torch.cat([labels, torch.full_like(labels, transformer.classes)][:copies])
    condition = transformer.class_emb(classes)
    predict = predictor(transformer, condition)
    accumulated = quantiser.empty(len(labels))
    last = len(transformer.tokens) - 1
    for scale in range(last + 1):
        if scale == 0:
            x = transformer.embed(0, None, condition)
        else:
            x = transformer.embed(scale, quantiser.at_scale(scale, accumulated), condition).repeat(copies, 1, 1)
        logits = predict(scale, x)
        if copies == 2:
            conditional, unconditional = logits.chunk(2)
            logits = guided_logits(conditional, unconditional, scale, last + 1, guidance)
        accumulated = accumulated + quantiser.contribution(scale, choose(scale, logits))
    return accumulated
