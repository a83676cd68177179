"""``t2ialign score``: folders of any layout, files of any kind, one JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

import t2ialign
from t2ialign import UsageError
from t2ialign.cli.score import parse_reward, score
from t2ialign.evaluation.folders import find_images, match_prompts
from t2ialign.evaluation.score import score_images, summarise
from t2ialign.storage.image_files import read_image

app = typer.Typer()
app.command()(score)


@pytest.fixture
def run():
    """Run the command; errors that a user can fix are raised as they are."""

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


class Red(t2ialign.Reward):
    """Mean red plus the length of the prompt."""

    batches: list[int]

    def score(self, images, prompts):
        self.batches.append(len(images))
        return images[:, 0].mean((1, 2)) + torch.tensor([float(len(prompt)) for prompt in prompts])


@pytest.fixture
def red():
    reward = Red(t2ialign.Config())
    reward.batches = []
    return reward


def paint(path, size=(8, 8), colour=(255, 0, 0), prompt=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = PngInfo()
    if prompt is not None:
        texts.add_itxt("prompt", prompt)
    Image.new("RGB", size, colour).save(path, pnginfo=texts if path.suffix == ".png" else None)
    return path


# Pictures


def test_grey_palette_and_transparency(tmp_path):
    Image.new("L", (4, 4), 51).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 51)).save(tmp_path / "rgba.png")
    Image.new("LA", (4, 4), (0, 255)).save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 255, 0] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)

    def colour(name):
        pixels, _ = read_image(tmp_path / name)
        assert pixels.shape == (3, 4, 4)
        assert pixels.dtype == torch.float32
        return [round(channel, 4) for channel in pixels.mean((1, 2)).tolist()]

    assert colour("grey.png") == [0.2, 0.2, 0.2]
    assert colour("rgba.png") == [1.0, 0.8, 0.8]
    assert colour("la.png") == [0.0, 0.0, 0.0]
    assert colour("palette.png") == [1.0, 1.0, 1.0]


def test_sixteen_bits(tmp_path):
    values = np.array([[0, 32768], [65535, 257]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels, _ = read_image(tmp_path / "deep.png")
    torch.testing.assert_close(pixels[1], torch.tensor(values.astype(np.float32)) / 65535)


def test_channels_are_not_swapped(tmp_path):
    pixels, texts = read_image(paint(tmp_path / "a.png", (3, 2), (255, 128, 0), prompt="é"))
    assert pixels.shape == (3, 2, 3)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1, 128 / 255, 0]))
    assert texts == {"prompt": "é"}


def test_camera_orientation(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (6, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg")[0].shape == (3, 6, 2)


# Folders and prompts


def test_images_come_in_natural_order(tmp_path):
    for name in ("10.png", "9.png", "a2.jpg", "a10.jpg", ".hidden.png", "notes.txt", "sub/1.png", ".cache/2.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def names(**options):
        return [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path, **options)]

    assert names() == ["9.png", "10.png", "a2.jpg", "a10.jpg"]
    assert names(recursive=True) == ["9.png", "10.png", "a2.jpg", "a10.jpg", "sub/1.png"]
    assert names(pattern="*.jpg") == ["a2.jpg", "a10.jpg"]
    with pytest.raises(UsageError, match=r"matches '\*\.webp'.*--recursive"):
        names(pattern="*.webp")


def test_partiprompts_names(tmp_path):
    file = tmp_path / "prompts.tsv"
    file.write_text("Prompt\tCategory\na cat\tx\na dog\ty\n")
    images = [paint(tmp_path / "images" / name) for name in ("0001_a-dog.png", "0000_a-cat.png", "0001_a-dog_1.png")]
    assert match_prompts(images, file) == ["a dog", "a cat", "a dog"]
    images.append(paint(tmp_path / "images" / "0002_x.png"))
    with pytest.raises(UsageError, match=r"0002_x.png is number 2, and .* has prompts 0 to 1"):
        match_prompts(images, file)


def test_prompt_file_on_the_command_line(tmp_path, run):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n")
    for name in ("0001_a-dog.png", "0000_a-cat.png"):
        paint(tmp_path / "images" / name)
    run(tmp_path / "images", "-r", "jpeg-compressibility", "--prompts", file, "--json", tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [item["prompt"] for item in written["images"]] == ["a cat", "a dog"]
    assert written["settings"]["prompts"] == str(file)


def test_prompts_by_position(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n")
    images = [paint(tmp_path / "images" / name) for name in ("first.png", "second.png")]
    assert match_prompts(images, file) == ["a cat", "a dog"]
    with pytest.raises(UsageError, match=r"1 images and 2 prompts.*'first.png' does not"):
        match_prompts(images[:1], file)


def test_geneval_layout(tmp_path, run):
    for number, prompt in enumerate(("a photo of a cat", "a photo of two dogs")):
        folder = tmp_path / "images" / f"{number:05d}"
        for sample in range(2):
            paint(folder / "samples" / f"{sample:04d}.png")
        paint(folder / "grid.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"tag": "x", "prompt": prompt}))
    out = tmp_path / "out.json"
    assert run(tmp_path / "images", "--reward", "jpeg-compressibility", "--json", out).exit_code == 0
    images = json.loads(out.read_text())["images"]
    assert [(item["image"], item["prompt"]) for item in images] == [
        ("00000/samples/0000.png", "a photo of a cat"),
        ("00000/samples/0001.png", "a photo of a cat"),
        ("00001/samples/0000.png", "a photo of two dogs"),
        ("00001/samples/0001.png", "a photo of two dogs"),
    ]


def test_geneval_folder_with_a_prompt_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n")
    images = [paint(tmp_path / "images" / "00001" / "samples" / f"000{i}.png") for i in range(2)]
    assert match_prompts(images, file) == ["a dog", "a dog"]


# Scores


def test_order_survives_mixed_sizes_and_batches(tmp_path, red):
    sizes = [(8, 8), (4, 6), (8, 8), (1, 1), (4, 6)]
    paths = [paint(tmp_path / f"{i}.png", size, (51 * i, 0, 0)) for i, size in enumerate(sizes)]
    ticks = []
    result = score_images(paths, ["p"] * 5, {"red": red}, batch=4, tick=ticks.append)
    assert [item.image for item in result.scored] == paths
    assert [item.scores["red"] for item in result.scored] == pytest.approx([1 + 0.2 * i for i in range(5)])
    assert ticks == [4, 1]
    assert red.batches == [2, 1, 1, 1]


def test_scores_that_are_not_numbers(tmp_path, red):
    class Broken(Red):
        def score(self, images, prompts):
            return torch.tensor([math.nan] * len(images))

    paths = [paint(tmp_path / "a.png")]
    result = score_images(paths, ["p"], {"red": red, "broken": Broken(t2ialign.Config())})
    assert result.scored[0].scores == {"red": 2.0, "broken": None}
    assert result.skipped == {paths[0]: "broken is nan"}
    assert result.summary(["broken"])["broken"] == {"mean": None, "std": None, "se": None, "count": 0}


def test_standard_error_is_over_prompts():
    values = [1.0, 3.0, 5.0, 7.0, None]
    summary = summarise(values, ["a", "a", "b", "b", "c"])
    assert summary == {
        "mean": 4.0,
        "std": pytest.approx(np.std(values[:4], ddof=1)),
        "se": pytest.approx(np.std([2, 6], ddof=1) / math.sqrt(2)),
        "count": 4,
    }
    assert summarise([1.0, 3.0], ["", ""])["se"] == pytest.approx(1.0)
    assert summarise([1.0], ["a"]) == {"mean": 1.0, "std": None, "se": None, "count": 1}


# The command


def test_a_folder_of_everything(tmp_path, run, clip_folder):
    folder = tmp_path / "images"
    paint(folder / "a.png", (40, 40), prompt="t05 t06")
    paint(folder / "b.png", (1, 1), prompt="t07")
    paint(folder / "c.png", (4000, 300), prompt="t08")
    texts = PngInfo()
    texts.add_itxt("prompt", "t09")
    Image.new("L", (40, 40), 100).save(folder / "d.png", pnginfo=texts)
    Image.new("RGBA", (40, 40), (1, 2, 3, 4)).save(folder / "e.png", pnginfo=texts)
    whole = (folder / "a.png").read_bytes()
    (folder / "f.png").write_bytes(whole[: len(whole) // 2])
    (folder / "g.png").write_text("not a picture")
    out = tmp_path / "out.json"
    clipscore = f"clipscore={{model = '{clip_folder}', scale = 1.0}}"
    result = run(folder, "-r", clipscore, "-r", "jpeg-incompressibility", "--json", out, "--batch", 3)
    assert result.exit_code == 1
    written = json.loads(out.read_text())
    assert [item["image"] for item in written["images"]] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert all(-1 <= item["scores"]["clipscore"] <= 1 for item in written["images"])
    assert [item["image"] for item in written["skipped"]] == ["f.png", "g.png"]
    assert all(item["reason"].startswith("not readable: ") for item in written["skipped"])
    assert {name: row["count"] for name, row in written["summary"].items()} == {
        "clipscore": 5,
        "jpeg-incompressibility": 5,
    }
    assert written["settings"]["rewards"]["clipscore"]["scale"] == 1.0
    assert "g.png: not readable" in result.stderr
    assert "scoring 7/7" in result.stderr


def test_same_scores_alone_and_in_company(tmp_path, run, clip_folder):
    for i in range(3):
        paint(tmp_path / "images" / f"{i}.png", (40 + i, 40), (80 * i, 10, 200))
    reward = f"clipscore={{model = '{clip_folder}'}}"
    scores = []
    for place in (tmp_path / "images", tmp_path / "images" / "1.png"):
        run(place, "-r", reward, "--prompt", "t05", "--json", tmp_path / "out.json")
        scores.append({i["image"]: i["scores"] for i in json.loads((tmp_path / "out.json").read_text())["images"]})
    assert scores[1]["1.png"]["clipscore"] == pytest.approx(scores[0]["1.png"]["clipscore"], abs=1e-4)


def test_image_without_a_prompt_is_left_out(tmp_path, run):
    paint(tmp_path / "a.png", prompt="x")
    paint(tmp_path / "b.jpg")
    result = run(tmp_path, "-r", "jpeg-compressibility")
    assert result.exit_code == 1
    assert "b.jpg: no prompt" in result.stderr
    assert run(tmp_path, "-r", "jpeg-compressibility", "--prompt", "").exit_code == 0


def test_two_rewards_of_one_kind(tmp_path, run):
    paint(tmp_path / "a.png", (64, 64), prompt="x")
    out = tmp_path / "out.json"
    low = "jpeg-compressibility={name = 'low', quality = 20}"
    run(tmp_path, "-r", "jpeg-compressibility", "-r", low, "--json", out)
    assert list(json.loads(out.read_text())["summary"]) == ["jpeg-compressibility", "low"]
    with pytest.raises(UsageError, match="another reward has this name"):
        run(tmp_path, "-r", "jpeg-compressibility", "-r", "jpeg-compressibility")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clipscor", "Did you mean 'clipscore'"),
        ("clipscore={scal = 1.0}", "Did you mean 'scale'"),
        ("clipscore={dtype = 'float8'}", "must be one of float32, bfloat16, float16"),
        ("clipscore={model = './absent folder'}", "is no existing folder"),
        ("clipscore={scale = }", "TOML inline table"),
        ("clipscore=1", "TOML inline table"),
        ("clipscore={weight = 1.0}", "weight only means something in a run's mix"),
        ("mps", "missing key"),
    ],
)
def test_wrong_rewards_are_explained(tmp_path, run, text, message):
    paint(tmp_path / "a.png", prompt="x")
    with pytest.raises(UsageError, match=message):
        run(tmp_path, "-r", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "prompts.txt", "--prompt", "x"], "exclude each other"),
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--json", "absent/out.json"], "no such folder"),
        (["--device", "tpu"], "must be auto, cpu"),
    ],
)
def test_wrong_options_are_explained(tmp_path, run, arguments, message):
    paint(tmp_path / "a.png", prompt="x")
    with pytest.raises(UsageError, match=message):
        run(tmp_path, "-r", "jpeg-compressibility", *arguments)


def test_parse_reward():
    assert parse_reward("pickscore") == {"kind": "pickscore"}
    assert parse_reward("clipscore={scale = 2.5, text = 'a=b'}") == {"kind": "clipscore", "scale": 2.5, "text": "a=b"}
