"""CPU time of a CLIP reward in batches with cached texts, beside one image at a time with its text encoded anew.

    OMP_NUM_THREADS=1 python tools/bench_rewards.py

A CLIP of ViT-B/32 size with random weights scores 64 images of 512 x 512 pixels, four for each of 16 prompts of 12
words, in float32 and in bfloat16:

    batched         one call of the tower, texts in its cache as from the second training step on
    one by one      per image: preprocessing, image tower, text tower on the bare prompt (PickScore's released code)
    ... padded      the same with every prompt padded to 77 tokens (HPSv2's released code)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from t2ialign_rewards.clip import ClipTower
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
    if options.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        options.json.write_text(json.dumps({"cpu_seconds": seconds, **versions}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
