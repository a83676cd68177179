"""HPSv3 (Ma et al. 2025): a Qwen2-VL reads instruction, prompt and image; a head on one token gives mean and spread."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel

from t2ialign import checkpoints
from t2ialign.errors import UsageError
from t2ialign_rewards import weights
from t2ialign_rewards.config import HpsV3Config
from t2ialign_rewards.network_reward import NetworkReward
from t2ialign_rewards.preprocess import channel_statistics, resize
from t2ialign_rewards.text import read_words

FILES = ("HPSv3.safetensors", "model.safetensors")
SETTINGS = ("*.json", "*.txt", "*.jinja")
#: The token that the authors add to Qwen2-VL's, and at which the head looks.
REWARD = "<|Reward|>"
#: Ours. The authors' instruction is longer and is not part of this package: give it as ``rubric``.
INSTRUCTION = """\
Rate the image from 0 to 10 on two counts. Visual quality: is it sharp, well lit, well composed, free of faults, and \
pleasing? Agreement with the text: does it show the objects, attributes, actions and relations that the text names?
Text: {prompt}
Rating: <|Reward|>"""
#: The beginnings of the released file's keys (those of transformers 4.45, and of later ones) as Qwen2VLModel has them.
BEGINNINGS = {
    "model.language_model.": "language_model.",
    "model.visual.": "visual.",
    "model.": "language_model.",
    "visual.": "visual.",
}


class Patches:
    """Images to the patches of a Qwen2-VL, differentiable.

    Args:
        pixels: about as many as the resized image has; the authors' 200704 are 448 x 448.
        patch, merge, time: pixels of a patch's side, patches of a token's side, and copies of an image.
    """

    def __init__(
        self, pixels: int, patch: int, merge: int, time: int, statistics: Mapping[str, Sequence[float]]
    ) -> None:
        self.pixels, self.patch, self.merge, self.time, self.statistics = pixels, patch, merge, time, statistics

    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) in [0, 1] to (B * h * w, 3 * time * patch ** 2), and (h, w)."""
        height, width = fitted(images.shape[2], images.shape[3], self.patch * self.merge, self.pixels)
        pixels = resize(images.float(), (height, width)).clamp(0, 1)  # 8-bit pictures have no overshoot either
        mean, std = (pixels.new_tensor(self.statistics[name]).view(3, 1, 1) for name in ("mean", "std"))
        side, merge = self.patch, self.merge
        high, wide = height // side, width // side
        blocks = ((pixels - mean) / std).reshape(-1, 3, high // merge, merge, side, wide // merge, merge, side)
        blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)  # the patches of a token follow one another
        blocks = blocks[..., None, :, :].expand(*blocks.shape[:6], self.time, side, side)
        return blocks.reshape(len(images) * high * wide, -1), (high, wide)


def fitted(height: int, width: int, factor: int, pixels: int) -> tuple[int, ...]:
    """Height and width, multiples of ``factor``, for about ``pixels`` in the same aspect (Qwen2-VL's rule)."""
    rounded = round(height / factor) * factor, round(width / factor) * factor
    area = rounded[0] * rounded[1]
    if area > pixels:
        shrink = math.sqrt(height * width / pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if area < pixels:
        grow = math.sqrt(pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return rounded


class Words:
    """A prompt to token ids that end with the reward token: what follows it cannot be seen from there.

    Args:
        tokenizer: of Qwen2-VL; the reward token becomes its last.
        rubric: with {prompt} and one reward token.
        image: the token that stands for a part of the image.
    """

    def __init__(self, tokenizer: Any, rubric: str, image: int) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
        self.tokenizer, self.rubric, self.image = tokenizer, rubric, tokenizer.convert_ids_to_tokens(image)
        self.reward: int = tokenizer.convert_tokens_to_ids(REWARD)

    def __call__(self, prompt: str, count: int) -> list[int]:
        """
        Args:
            count: image tokens.
        """
        text = self.rubric.replace("{prompt}", prompt.replace("<|", "< |"))  # a prompt has no special tokens
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        ids: list[int] = self.tokenizer(chat.replace(self.image, self.image * count, 1))["input_ids"]
        return ids[: ids.index(self.reward) + 1]


class HpsV3Network(nn.Module):
    """Images and prompts to the means (B,)."""

    def __init__(self, model: Qwen2VLModel, head: nn.Module, words: Words, patches: Patches) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.patches = patches
        self.words: Callable[[str, int], list[int]] = lru_cache(maxsize=4096)(words)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels, (high, wide) = self.patches(images)
        rows = [self.words(str(prompt), high * wide // self.patches.merge**2) for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=images.device)
        last = torch.tensor([len(row) - 1 for row in rows], device=images.device)
        places = torch.arange(longest, device=images.device)
        hidden = self.model(
            input_ids=ids,
            attention_mask=(places <= last[:, None]).long(),
            # One after the other, also inside the image: the authors' forward gives the network no grid for them.
            position_ids=places.expand(3, *ids.shape),
            pixel_values=pixels,
            image_grid_thw=torch.tensor([[1, high, wide]] * len(images), device=images.device),
            use_cache=False,
        ).last_hidden_state
        mean_and_spread: Tensor = self.head(hidden[torch.arange(len(rows), device=images.device), last].float())
        return mean_and_spread[:, 0]


class HpsV3(NetworkReward):
    """HPSv3: the mean of the predicted human preference."""

    Config = HpsV3Config
    #: Of the resized image; the authors' 256 tokens.
    pixels: ClassVar[int] = 256 * 28 * 28

    def load(self) -> HpsV3Network:
        config: HpsV3Config = self.config
        file = weights.find_file(config.checkpoint, config.revision, FILES)
        base = checkpoints.resolve(config.base, patterns=SETTINGS)
        state, head = split_checkpoint(weights.read_tensors(file), str(file))
        checkpoints.check_model(base)
        sizes = Qwen2VLConfig.from_pretrained(base)
        sizes.text_config.vocab_size = len(state["language_model.embed_tokens.weight"])
        words = self._words(base, sizes)
        if words.reward != sizes.text_config.vocab_size - 1:
            raise UsageError(
                f"{file} has {sizes.text_config.vocab_size} tokens, the tokenizer of {base} with {REWARD}"
                f" {words.reward + 1}: they do not belong together"
            )
        model = weights.from_state(Qwen2VLModel, sizes, state, config.dtype, str(file))
        vision = sizes.vision_config
        patches = Patches(
            self.pixels,
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
            channel_statistics(base),
        )
        return HpsV3Network(model, head, words, patches)

    def _words(self, base: Path, sizes: Qwen2VLConfig) -> Words:
        config: HpsV3Config = self.config
        rubric = INSTRUCTION if config.rubric is None else read_words(config.rubric, self.label)
        if rubric.count(REWARD) != 1 or "{prompt}" not in rubric:
            raise UsageError(f"{self.label}: rubric '{config.rubric}' must have {{prompt}}, and {REWARD} once")
        tokenizer = AutoTokenizer.from_pretrained(base)
        file = base / "chat_template.json"  # where older checkpoints keep the processor's
        if tokenizer.chat_template is None and file.is_file():
            tokenizer.chat_template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        if tokenizer.chat_template is None:
            raise UsageError(f"the tokenizer of {base} has no chat template")
        return Words(tokenizer, rubric, sizes.image_token_id)


def split_checkpoint(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], nn.Sequential]:
    """The released file as Qwen2VLModel names it, and the head.

    Raises:
        UsageError: keys that belong to neither, or a head of another shape.
    """
    model: dict[str, Tensor] = {}
    layers: dict[str, Tensor] = {}
    unexpected = []
    for key, value in state.items():
        beginning = next((old for old in BEGINNINGS if key.startswith(old)), None)
        if beginning is not None:
            model[BEGINNINGS[beginning] + key.removeprefix(beginning)] = value
        elif key.startswith("rm_head."):
            layers[key.removeprefix("rm_head.")] = value
        elif not key.startswith("lm_head."):  # words are not written here
            unexpected.append(key)
    missing = [] if "language_model.embed_tokens.weight" in model else ["model.embed_tokens.weight"]
    weights.require_keys(source, missing, unexpected)
    return model, read_head(layers, source)


def read_head(layers: Mapping[str, Tensor], source: str) -> nn.Sequential:
    """Three linear layers in float32; released: 3584 -> 1024 -> 16 -> 2, with dropout after the first."""
    wanted = {f"{number}.{part}" for number in (0, 3, 5) for part in ("weight", "bias")}
    named = [{f"rm_head.{key}" for key in keys} for keys in (wanted - layers.keys(), layers.keys() - wanted)]
    weights.require_keys(source, *named)
    first, second, third = (nn.Linear(*layers[f"{number}.weight"].shape[::-1]) for number in (0, 3, 5))
    head = nn.Sequential(first, nn.ReLU(), nn.Identity(), second, nn.ReLU(), third)
    head.load_state_dict({key: value.float() for key, value in layers.items()})
    return head
