"""The released models: files and sizes. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from t2ialign_infinity.config import TEXT_LENGTH

_VAE_F16 = {"ch": 128, "ch_mult": [1, 2, 4, 4, 4], "num_res_blocks": 2}
_VAE_F8 = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}


@dataclass(frozen=True)
class Variant:
    """One released model.

    Attributes:
        weights: file, or folder of shards, with the transformer.
        vae: file with the autoencoder.
        resolution: pixel budget it was trained for.
        tau: temperature of the logits in the authors' examples.
        transformer, autoencoder: hyper-parameters.
    """

    weights: str
    vae: str
    resolution: str
    tau: float
    transformer: dict[str, Any] = field(hash=False)
    autoencoder: dict[str, Any] = field(hash=False)


def _variant(
    weights: str, vae: str, resolution: str, tau: float, depth: int, width: int, heads: int, chunks: int, bits: int
) -> Variant:
    """``bits`` per position; 14 come in 2 x 2 patches of an autoencoder of stride 8."""
    patchify = bits == 14
    transformer = {
        "bits": 4 * bits if patchify else bits,
        "depth": depth,
        "width": width,
        "heads": heads,
        "chunks": chunks,
        "text_channels": 2048,
        "text_length": TEXT_LENGTH,
    }
    autoencoder = {"bits": bits, "patchify": patchify} | (_VAE_F8 if patchify else _VAE_F16)
    return Variant(weights, vae, resolution, tau, transformer, autoencoder)


VARIANTS = {
    "125m": _variant("infinity_125M_256x256.pth", "infinity_vae_d16.pth", "0.06M", 1.0, 12, 768, 8, 4, 16),
    "2b": _variant("infinity_2b_reg.pth", "infinity_vae_d32reg.pth", "1M", 0.5, 32, 2048, 16, 8, 32),
    "8b": _variant("infinity_8b_weights", "infinity_vae_d56_f8_14_patchify.pth", "1M", 1.0, 40, 3584, 28, 8, 14),
    "8b-512": _variant(
        "infinity_8b_512x512_weights", "infinity_vae_d56_f8_14_patchify.pth", "0.25M", 1.0, 40, 3584, 28, 8, 14
    ),
}
