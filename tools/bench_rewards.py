"""CPU time of CLIP rewards in batches with cached texts, beside the one-image-at-a-time forms that are in use.

    OMP_NUM_THREADS=1 python tools/bench_rewards.py

CLIPs of ViT-B/32 size with random weights score 64 images of 512 x 512 pixels, four for each of 16 prompts of 12
words. A single cosine, in float32 and in bfloat16:

    batched         one call of the tower, texts in its cache as from the second training step on
    one by one      per image: preprocessing, image tower, text tower on the bare prompt (PickScore's released code)
    ... padded      the same with every prompt padded to 77 tokens (HPSv2's released code)

The reward of HyperscaleES_T2I, in float32: PickScore and three texts in another CLIP. Its code gives one 8-bit PIL
image at a time to both models and encodes all texts for each, whatever the weights are:

    hyperscale      per image: both image towers, three texts and the prompt
    all four        our four rewards, batched, texts cached, the three of one model sharing its image embeddings
    pickscore       the same with the default weights, under which only PickScore counts
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from t2ialign.storage.images import to_pil
from t2ialign_rewards.clip import ClipTower
from t2ialign_rewards.clip_scores import ClipCosine, ClipScore, PickScore
from t2ialign_rewards.config import ClipAestheticConfig, ClipTextConfig, NoArtifactsConfig, PickScoreConfig
from t2ialign_rewards.preprocess import Preprocess
from t2ialign_rewards.text import Tokenizer

IMAGES, PROMPTS, SIDE, LIMIT = 64, 16, 512, 77
BEGIN, END = 49406, 49407


class Words:
    """Stands for CLIP's tokenizer: one token per word."""

    model_max_length = LIMIT

    def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [BEGIN, *(int(word) for word in text.split()), END]}


def one_by_one(clip: CLIPModel, tower: ClipTower, images: Tensor, prompts: list[str], length: int) -> Tensor:
    """The form of the rewards' own repositories; ``length`` pads the text."""
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        ids = tower.tokenizer(prompt)
        ids += [0] * (length - len(ids))
        text = clip.get_text_features(torch.tensor([ids])).pooler_output
        features = clip.get_image_features(tower.preprocess(image[None])).pooler_output
        scores.append(F.cosine_similarity(features.float(), text.float())[0])
    return torch.stack(scores)


def hyperscale(models: list[CLIPModel], tower: ClipTower, images: Tensor, prompts: list[str]) -> Tensor:
    """PickScore as HyperscaleES_T2I computes it: beside three similarities of another CLIP, image by image."""
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = torch.from_numpy(np.array(to_pil(image))).permute(2, 0, 1)[None].float() / 255
        fixed = ["7 " * 11, prompt, "9 " * 16]  # as long as its texts for aesthetics and for artifacts
        for model, texts in zip(models, (fixed, [prompt]), strict=True):
            ids = [tower.tokenizer(text) for text in texts]
            longest = max(map(len, ids))
            padded = torch.tensor([row + [END] * (longest - len(row)) for row in ids])
            text = F.normalize(model.get_text_features(padded).pooler_output, dim=-1)
            features = F.normalize(model.get_image_features(tower.preprocess(pixels)).pooler_output, dim=-1)
            cosines = features @ text.T
        scores.append(cosines[0, 0])
    return torch.stack(scores)


def with_tower(reward: ClipCosine, tower: ClipTower) -> ClipCosine:
    """A reward on a tower that is already there."""
    reward.network = tower
    return reward


def cpu_seconds(run: Callable[[], Tensor], rounds: int) -> float:
    """Best process CPU time of one call that has been made before."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1, help="the best of so many counts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 12}
    clip = CLIPModel(CLIPConfig(text_config=layers, vision_config=layers, projection_dim=512)).eval()
    images = torch.rand(IMAGES, 3, SIDE, SIDE)
    words = torch.randint(1, BEGIN, (PROMPTS, 12)).tolist()
    prompts = [" ".join(map(str, words[i * PROMPTS // IMAGES])) for i in range(IMAGES)]

    seconds: dict[str, float] = {}
    expected = None
    for dtype in (torch.float32, torch.bfloat16):
        model = clip.to(dtype)
        tower = ClipTower(model, Tokenizer(Words(), LIMIT), Preprocess(clip.config.vision_config.image_size)).eval()
        for form, run in (
            ("batched", partial(tower, images, prompts)),
            ("one by one", partial(one_by_one, model, tower, images, prompts, 0)),
            ("one by one, padded", partial(one_by_one, model, tower, images, prompts, LIMIT)),
        ):
            scores = run()
            expected = scores if expected is None else expected
            name = f"{form}, {str(dtype).removeprefix('torch.')}"
            seconds[name] = cpu_seconds(run, options.rounds)
            print(f"{name:<30}{seconds[name]:7.2f} s CPU   largest deviation {(scores - expected).abs().max():.1e}")
    clip = clip.float()
    models = [clip, CLIPModel(clip.config).eval()]
    towers = [ClipTower(m, Tokenizer(Words(), LIMIT), Preprocess(224)).eval() for m in models]
    three = [
        with_tower(ClipScore(ClipTextConfig()), towers[0]),
        with_tower(ClipScore(ClipAestheticConfig(text="7 " * 11)), towers[0]),
        with_tower(ClipScore(NoArtifactsConfig(text="9 " * 16)), towers[0]),
    ]
    pick = with_tower(PickScore(PickScoreConfig()), towers[1])

    def ours(rewards: list[ClipCosine]) -> Tensor:
        batch = images.clone()  # a batch that no reward has seen
        return torch.stack([reward.score(batch, prompts) for reward in rewards])[-1] / towers[1].logit_scale

    expected = None
    for name, run in (
        ("hyperscale, one by one", partial(hyperscale, models, towers[0], images, prompts)),
        ("all four, batched", partial(ours, [*three, pick])),
        ("pickscore, batched", partial(ours, [pick])),
    ):
        scores = run()
        expected = scores if expected is None else expected
        seconds[name] = cpu_seconds(run, options.rounds)
        print(f"{name:<30}{seconds[name]:7.2f} s CPU   largest deviation {(scores - expected).abs().max():.1e}")
    if options.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        options.json.write_text(json.dumps({"cpu_seconds": seconds, **versions}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
