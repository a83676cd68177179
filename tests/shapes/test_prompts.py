"""The prompt files are what the tool writes, and all of them are captions."""

import json
from importlib.resources import files
from pathlib import Path

from shapes_training.prompts import write_prompts

from t2ialign_shapes.captions import FAMILIES, parse

PROMPTS = Path(str(files("t2ialign_shapes"))) / "prompts"


def read(name):
    return [parse(line) for line in (PROMPTS / name).read_text().splitlines()]


def test_the_files_repeat(tmp_path):
    write_prompts(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_text() == (PROMPTS / path.name).read_text(), path.name


def test_training_and_held_out_prompts_share_nothing():
    train, heldout = read("train.txt"), read("heldout.txt")
    assert (len(train), len(heldout)) == (144, 189)
    assert len({*train, *heldout}) == 144 + 189
    for captions in (train, heldout):
        assert {caption.family for caption in captions} == set(FAMILIES)


def test_the_benchmark_describes_its_prompts():
    lines = (PROMPTS / "benchmark.jsonl").read_text().splitlines()
    for entry in map(json.loads, lines):
        caption = parse(entry["prompt"])
        assert entry["tag"] == caption.family
        assert sum(wanted["count"] for wanted in entry["include"]) == len(caption.objects)
        for wanted in entry["include"]:
            thing = next(t for t in caption.things if t.shape == wanted["class"])
            assert (thing.count, thing.color) == (wanted["count"], wanted.get("color"))
            if "position" in wanted:
                relation, reference = wanted["position"]
                assert (thing, relation) == (caption.things[0], caption.relation)
                assert entry["include"][reference]["class"] == caption.things[1].shape
