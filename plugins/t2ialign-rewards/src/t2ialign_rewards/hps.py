"""HPSv2 (Wu et al. 2023), from the released open_clip checkpoint."""

from __future__ import annotations

from transformers import CLIPModel

from t2ialign import checkpoints
from t2ialign_rewards import weights
from t2ialign_rewards.clip import SETTINGS, ClipTower, assemble, clip_config
from t2ialign_rewards.clip_scores import ClipCosine
from t2ialign_rewards.config import HpsConfig
from t2ialign_rewards.open_clip import to_transformers
from t2ialign_rewards.text import open_clip_clean

FILES = {"v2": "HPS_v2_compressed", "v2.1": "HPS_v2.1_compressed"}


class Hps(ClipCosine):
    """HPSv2 or HPSv2.1: cosine of image and prompt in a CLIP tuned on human choices; about 0.20 to 0.35."""

    Config = HpsConfig

    def load(self) -> ClipTower:
        config: HpsConfig = self.config
        stem = FILES[config.version]
        file = weights.find_file(config.checkpoint, config.revision, [f"{stem}.safetensors", f"{stem}.pt"])
        base = checkpoints.resolve(config.base, patterns=SETTINGS)
        state = to_transformers(weights.read_tensors(file))
        clip = weights.from_state(CLIPModel, clip_config(base), state, config.dtype, str(file))
        return assemble(clip, config, base, base, open_clip_clean)
