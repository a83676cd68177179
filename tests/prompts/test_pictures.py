"""`score` and `sample` with the folders, files and numbers that people have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.errors import UsageError
from t2ialign.evaluation.folders import find_images, match_prompts
from t2ialign.evaluation.score import score_images
from t2ialign.testing import toy
from t2ialign.testing.world import write_spec

CASES = Path(__file__).parents[1] / "golden" / "cases"
REWARDS = {"red": toy.Redness(toy.Redness.Config())}


def picture(path: Path, **texts: str) -> Path:
    chunks = PngInfo()
    for key, value in texts.items():
        chunks.add_itxt(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, format="PNG", pnginfo=chunks)
    return path


def test_a_comfyui_picture_is_scored_by_its_prompt_and_never_by_its_graph():
    files = find_images(CASES / "01-comfyui-png")
    result = score_images(files, None, REWARDS)
    assert [item.prompt for item in result.scored] == ["a red circle"] or result.skipped


def test_pictures_of_every_kind_are_read_or_listed():
    files = find_images(CASES / "10-silent-left-out-files" / "mix")
    result = score_images(files, ["x"] * len(files), REWARDS)
    assert len(files) == 4
    assert len(result.scored) + len(result.skipped) == 4
    assert len(result.scored) >= 3


def test_a_broken_or_odd_file_is_listed_and_the_rest_is_scored(tmp_path):
    picture(tmp_path / "0.png", prompt="x")
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    (tmp_path / "2.tif").write_bytes(b"II*\0" + bytes(range(64)))
    (tmp_path / "3.jxl").write_bytes(b"\xff\x0a")
    (tmp_path / "4.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    result = score_images(find_images(tmp_path), None, REWARDS)
    assert [item.image.name for item in result.scored] == ["0.png"]
    assert {path.name for path in result.skipped} == {"1.png", "2.tif", "3.jxl", "4.png"}


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("t2ialign.storage.image_files.MOST_PIXELS", 15)
    result = score_images([picture(tmp_path / "0.png", prompt="x")], None, REWARDS)
    assert "4 x 4 pixels are more than 15" in next(iter(result.skipped.values()))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    result = score_images([tmp_path / "1.png"], ["x"], REWARDS)
    assert "no regular file" in next(iter(result.skipped.values()))


def test_numbers_that_may_count_lines_or_prompts_are_refused(tmp_path):
    (tmp_path / "p.txt").write_text("red\n\n# a comment\nblue\n")
    files = [picture(tmp_path / "images" / f"{number:04d}.png") for number in (0, 1)]
    with pytest.raises(UsageError, match="--numbering line or --numbering prompt"):
        match_prompts(files, tmp_path / "p.txt")
    assert match_prompts(files, tmp_path / "p.txt", "prompt") == ["red", "blue"]
    by_line = [picture(tmp_path / "lines" / f"{number:04d}.png") for number in (0, 3)]
    assert match_prompts(by_line, tmp_path / "p.txt", "line") == ["red", "blue"]


def test_one_number_in_two_folders_is_refused(tmp_path):
    (tmp_path / "p.txt").write_text("red\nblue\n")
    for folder in ("anime", "photo"):
        picture(tmp_path / "images" / folder / "00000.png")
    with pytest.raises(UsageError, match="one folder at a time"):
        match_prompts(find_images(tmp_path / "images", recursive=True), tmp_path / "p.txt")


@pytest.fixture
def sampled(tmp_path, toy_registry):
    (tmp_path / "nine.txt").write_text("".join(f"prompt {number}\n" for number in range(9)))
    spec = write_spec(tmp_path, evaluation={"prompts": "nine.txt"})

    def sample(*arguments: str):
        return CliRunner().invoke(app, ["sample", str(spec), *arguments])

    return sample


def test_sample_draws_every_prompt_and_score_reads_them_back(tmp_path, sampled):
    done = sampled("--out", str(tmp_path / "out"))
    assert "9 images of 9 prompts" in done.output
    assert "the first 8 of them" in done.output
    files = find_images(tmp_path / "out")
    assert match_prompts(files, tmp_path / "nine.txt") == [f"prompt {number}" for number in range(9)]
    assert [item.prompt for item in score_images(files, None, REWARDS).scored][8] == "prompt 8"


def test_sample_takes_a_file_and_a_limit(tmp_path, sampled):
    (tmp_path / "own.jsonl").write_text('{"prompt": "red"}\n{"prompt": "blue"}\n')
    done = sampled("--prompts", str(tmp_path / "own.jsonl"), "--limit", "1", "-n", "2", "--out", str(tmp_path / "out"))
    assert "2 images of 1 prompts" in done.output
    assert isinstance(sampled("--prompts", "x.txt", "-p", "y").exception, UsageError)


def test_sample_does_not_overwrite(tmp_path, sampled):
    assert sampled("--out", str(tmp_path / "out")).exit_code == 0
    again = sampled("--out", str(tmp_path / "out"))
    assert "has images already" in str(again.exception)


def test_sample_keeps_only_what_its_grid_shows(tmp_path, sampled, monkeypatch):
    kept = []
    stack = torch.stack
    monkeypatch.setattr(
        "t2ialign.run.sample.torch.stack", lambda images, *rest: kept.append(len(images)) or stack(images)
    )
    assert sampled("-n", "20", "-p", "red", "--out", str(tmp_path / "out")).exit_code == 0
    assert sum(kept[-8:]) == 8


def test_remote_rewards_get_the_data():
    from services import serving

    from t2ialign_rewards.config import RemoteConfig
    from t2ialign_rewards.remote import Remote

    with serving(lambda request: {"scores": [1.0] * len(request["prompts"])}) as server:
        reward = Remote(RemoteConfig(url=server.url, wait=0.0, timeout=5.0))
        reward.score(torch.zeros(2, 3, 4, 4), [toy.t2ialign.Prompt("red", {"tag": "x"}), "blue"])
    assert server.requests[0]["prompts"] == ["red", "blue"]
    assert server.requests[0]["metadata"] == [{"tag": "x"}, {}]
