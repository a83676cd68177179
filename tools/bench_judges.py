"""What an image of 512 x 512 costs the networks of ``geneval``: CPU seconds and memory, with random weights.

    OMP_NUM_THREADS=1 python tools/bench_judges.py

The architectures have the sizes of the released models (Mask2Former Swin-S, OWLv2 base, Grounding DINO tiny, CLIP
ViT-L/14), the weights are random, so that nothing has to be downloaded: times are right, verdicts mean nothing. Each
runs in a process of its own, whose peak memory is shown.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers as T
from PIL import Image

from t2ialign_judges.colors import Colors
from t2ialign_judges.detectors import KINDS
from t2ialign_rewards.clip import ClipTower
from t2ialign_rewards.preprocess import Preprocess

SIDE, IMAGES = 512, 2


class Words:
    """Stands for CLIP's tokenizer."""

    def __call__(self, prompt: str) -> list[int]:
        return [49406, *range(1, len(prompt.split()) + 1), 49407]


def write_tokenizer(folder: Path) -> T.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "a", "photo", "of", "dog", "cup"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return T.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]", model_max_length=16
    )


def write(kind: str, folder: Path) -> None:
    """A folder with a model of the released size."""
    if kind == "mask2former":
        T.Mask2FormerForUniversalSegmentation(T.Mask2FormerConfig(num_labels=80)).save_pretrained(folder)
        T.Mask2FormerImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333}).save_pretrained(folder)
    elif kind == "owlv2":
        vision = {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 960, "patch_size": 16}
        T.Owlv2ForObjectDetection(T.Owlv2Config(vision_config=vision)).save_pretrained(folder)
        images = T.Owlv2ImageProcessor(size={"height": 960, "width": 960})
        T.Owlv2Processor(images, write_tokenizer(folder)).save_pretrained(folder)
    else:
        T.GroundingDinoForObjectDetection(T.GroundingDinoConfig()).save_pretrained(folder)
        T.GroundingDinoProcessor(T.GroundingDinoImageProcessor(), write_tokenizer(folder)).save_pretrained(folder)


@torch.no_grad()
def measure(kind: str) -> None:
    image = Image.new("RGB", (SIDE, SIDE), "grey")
    if kind == "colour (CLIP ViT-L/14)":
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision |= {"patch_size": 14, "projection_dim": 768}
        clip = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)).eval()
        colors = Colors(ClipTower(clip, Words(), Preprocess(224)))

        def call() -> object:
            return colors(image, "dog", (10, 10, 400, 400), None)

    else:
        with tempfile.TemporaryDirectory() as name:
            write(kind, Path(name))
            detector = KINDS[kind](Path(name), "float32", torch.device("cpu"), 0.1, 0.25)

        def call() -> object:
            return detector(image, ["dog", "cup"])

    call()
    started = time.process_time()
    for _ in range(IMAGES):
        call()
    seconds = (time.process_time() - started) / IMAGES
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{kind:24s} {seconds:6.1f} CPU seconds an image, {peak:.1f} GiB at most", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    only = parser.parse_args().only
    if only:
        measure(only)
        return
    for kind in (*KINDS, "colour (CLIP ViT-L/14)"):
        subprocess.run([sys.executable, __file__, "--only", kind], check=True)


if __name__ == "__main__":
    main()
