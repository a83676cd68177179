"""The LAION aesthetic predictor (Schuhmann 2022): an affine map of the unit CLIP image embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign_rewards import weights
from t2ialign_rewards.affine_head import AffineHead
from t2ialign_rewards.clip import ClipImages, clip_config, image_preprocess
from t2ialign_rewards.config import AestheticConfig
from t2ialign_rewards.network_reward import NetworkReward
from t2ialign_rewards.preprocess import Preprocess

#: The published linearMSE heads, multiplied out; the file's metadata says where they come from.
HEADS = Path(__file__).parent / "data" / "aesthetic_heads.safetensors"


class AestheticNetwork(ClipImages):
    """CLIP's image side and the head."""

    def __init__(self, clip: CLIPVisionModelWithProjection, preprocess: Preprocess, head: AffineHead) -> None:
        super().__init__(clip, preprocess)
        self.head = head

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.head(self.image_embeds(images))


class Aesthetic(NetworkReward):
    """LAION aesthetic score of the image alone, 1 to 10."""

    Config = AestheticConfig

    def load(self) -> AestheticNetwork:
        config: AestheticConfig = self.config
        folder = weights.model_folder(config.model, config.revision)
        settings = clip_config(folder)
        settings.vision_config.projection_dim = settings.projection_dim
        clip = weights.from_folder(
            CLIPVisionModelWithProjection,
            settings.vision_config,
            folder,
            config.dtype,
            ignore=("text_model.", "text_projection.", "logit_scale"),
        )
        preprocess = image_preprocess(config, folder, settings.vision_config.image_size)
        return AestheticNetwork(clip, preprocess, load_head(config.head))


def load_head(name: str) -> AffineHead:
    """A published head by name, or one from the file of the improved aesthetic predictor.

    Raises:
        UsageError: no such file, or not a linear head.
    """
    published = load_file(HEADS)
    if f"{name}.weight" in published:
        return AffineHead(published[f"{name}.weight"], published[f"{name}.bias"])
    file = places.existing(name)
    if file is None or not file.is_file():
        raise UsageError(f"aesthetic head '{name}': no such file")
    return AffineHead.collapse(weights.read_tensors(file), name)
