"""How the reward ``ocr`` scores 200 drawn words, in fonts of matplotlib, three sizes and three strengths of noise.

    OMP_NUM_THREADS=1 python tools/ocr_words.py

Each word is drawn as it is asked for, with one letter exchanged, with two, and in its place another word. The scores of
the four pictures should stand in this order.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from importlib.metadata import version
from itertools import cycle, islice, pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from judges.lettering import noisy, written

from t2ialign_judges.config import OcrConfig
from t2ialign_judges.ocr import Ocr

WORDS = """HELLO Coffee OPEN Library Rhythm Quartz Spring Winter jumping JELLY Sale Fox Happy Birthday Forever Yours
Goal Achieved Market Bakery Garden Museum Hotel Danger Welcome Thanks Music Science Orange Purple Chocolate Summer
Station Exit Pharmacy Bicycle Mountain River Harbour Kitchen""".split()  # noqa: SIM905
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono-Bold", "STIXGeneral", "cmr10")
SIZES, NOISE = (20, 40, 80), (0.0, 0.125, 0.25)
FORMS = ("as asked", "one letter wrong", "two letters wrong", "another word")


def damaged(word: str, letters: int) -> str:
    """The word with its first letters exchanged for ones that look otherwise."""
    return "".join("W" if letter.upper() in "OQCDGB" else "O" for letter in word[:letters]) + word[letters:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=OcrConfig().side)
    arguments = parser.parse_args()
    reward = Ocr(OcrConfig(side=arguments.side))
    noise = [std for std in NOISE for _ in SIZES]
    cases = list(islice(zip(WORDS * 5, sorted(FONTS * 40), cycle(SIZES), cycle(noise), strict=False), 200))
    rows, started = [], time.process_time()
    for number, (word, font, size, std) in enumerate(cases):
        drawn = [word, damaged(word, 1), damaged(word, 2), WORDS[(number + 7) % len(WORDS)]]
        images = torch.stack([noisy(written(text, font, size), std) for text in drawn])
        rows.append((font, size, std, reward.score(images, [f'"{word}"'] * 4).tolist()))
    seconds = (time.process_time() - started) / (4 * len(rows))
    print(json.dumps({name: version(name) for name in ("rapidocr", "onnxruntime", "rapidfuzz")}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(rows)} words, {seconds:.3f} CPU seconds an image, {peak:.1f} GiB at most")
    ordered = sum(all(a > b for a, b in pairwise(scores)) for *_, scores in rows)
    print(f"all four in order: {ordered}; right best alone: {sum(s[0] > max(s[1:]) for *_, s in rows)}")
    for column, form in enumerate(FORMS):
        values = [scores[column] for *_, scores in rows]
        print(f"{form:18s} mean {statistics.fmean(values):.3f}  exactly 1: {sum(value == 1 for value in values)}")
    for index, name in enumerate(("font", "size", "noise")):
        for key in dict.fromkeys(row[index] for row in rows):
            values = [row[3][0] for row in rows if row[index] == key]
            right = sum(value == 1 for value in values)
            print(f"{name} {key}: mean {statistics.fmean(values):.3f}, 1.0 for {right}/{len(values)}")


if __name__ == "__main__":
    main()
