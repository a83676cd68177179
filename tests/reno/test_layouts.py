"""Benchmark layouts, read back the way the benchmarks' scorers read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from t2ialign.errors import SpecError
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs

QUIET = Display(quiet=True)
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cow", "count": 2}], "exclude": [{"class": "cow", "count": 3}],
     "prompt": "a photo of two cows"},
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
]  # fmt: skip


def read_geneval(folder: Path) -> list[tuple[dict, list[Path]]]:
    """GenEval's evaluator: folders of digits, one JSON object each, samples of digits; everything else is skipped."""
    found = []
    for sub in sorted(folder.iterdir()):
        if not sub.is_dir() or not sub.name.isdigit():
            continue
        metadata = json.loads((sub / "metadata.jsonl").read_text())
        samples = [f for f in sorted((sub / "samples").iterdir()) if re.fullmatch(r"\d+\.png", f.name)]
        found.append((metadata, samples))
    return found


def read_compbench(folder: Path) -> list[tuple[str, Path]]:
    """T2I-CompBench's evaluators: every file counts, sorted by the digits after the last underscore; the prompt is
    what stands before the first one."""
    files = sorted((folder / "samples").iterdir(), key=lambda f: int(f.stem.split("_")[-1]))
    return [(file.name.split("_")[0], file) for file in files]


def exported(reno_spec, **options) -> Path:
    run = runner.start(specs.load(reno_spec(**options)), QUIET)
    return run.path / "export"


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_geneval(reno_spec):
    texts = "".join(json.dumps(line) + "\n" for line in GENEVAL)
    export = exported(
        reno_spec,
        prompts_file="evaluation_metadata.jsonl",
        texts=texts,
        prompts={"images_per_prompt": 4},
        optimizer={"layout": "geneval"},
    )
    found = read_geneval(export / "geneval")
    assert [metadata for metadata, _ in found] == GENEVAL
    for index, (_, samples) in enumerate(found):
        assert [file.name for file in samples] == ["00000.png", "00001.png", "00002.png", "00003.png"]
        for image, file in enumerate(samples):
            assert pixels(file) == pixels(export / "images" / f"{index:05d}-{image}" / "best.png")
    again = {pixels(file) for index in (0, 2) for file in found[index][1]}
    assert len(again) == 8, "a prompt that stands twice gets other images the second time"
    assert len({pixels(file) for file in found[0][1]}) == 4


def test_t2i_compbench(reno_spec):
    prompts = ["a green bench and a blue bowl", "The red apple is on the table.", "two dogs, one café"]
    export = exported(
        reno_spec,
        prompts_file="color_val.txt",
        texts="\r\n".join(prompts) + "\r\n",
        prompts={"images_per_prompt": 2},
        optimizer={"layout": "t2i-compbench"},
    )
    found = read_compbench(export / "t2i-compbench")
    assert [prompt for prompt, _ in found] == [prompt for prompt in prompts for _ in range(2)]
    assert [file.name[-10:] for _, file in found] == [f"{number:06d}.png" for number in range(6)]
    for number, (_, file) in enumerate(found):
        assert pixels(file) == pixels(export / "images" / f"{number // 2:05d}-{number % 2}" / "best.png")


def test_parti_prompts(reno_spec):
    rows = [('"quoted" words', "Writing"), ("a corgi", "Animals"), ("300", "Abstract")]
    texts = "Prompt\tCategory\n" + "".join(f"{prompt}\t{category}\n" for prompt, category in rows)
    export = exported(reno_spec, prompts_file="PartiPrompts.tsv", texts=texts, optimizer={"layout": "parti-prompts"})
    folders = sorted((export / "parti-prompts").iterdir())
    assert [folder.name for folder in folders] == ["0", "1", "2"]
    for index, folder in enumerate(folders):
        assert (folder / "prompt.txt").read_text() == rows[index][0]
        assert pixels(folder / "best_image.png") == pixels(export / "images" / f"{index:05d}-0" / "best.png")
        assert sorted(file.name for file in folder.iterdir()) == ["best_image.png", "prompt.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": {"layout": "geneval"}}, "needs the benchmark's own .jsonl"),
        ({"optimizer": {"layout": "t2i-compbench"}, "texts": "a red/blue ball\n"}, "cannot hold '/'"),
        ({"optimizer": {"layout": "t2i-compbench"}, "texts": "snake_case\n"}, "cannot hold '_'"),
        ({"optimizer": {"layout": "parti-prompts"}, "prompts": {"images_per_prompt": 2}}, "one image per prompt"),
        ({"optimizer": {"layout": "geneva"}}, "Did you mean 'geneval'?"),
    ],
)
def test_prompts_that_do_not_fit_a_layout_are_refused_at_once(reno_spec, options, words):
    with pytest.raises(SpecError) as caught:
        specs.load(reno_spec(**options))
    assert words in str(caught.value)
