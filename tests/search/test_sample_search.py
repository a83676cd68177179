"""``t2ialign sample --search``: a search as a person uses it at the prompt."""

from __future__ import annotations

import json
import os
import sys
import tomllib

import pytest
import tomli_w
import torch
import typer.testing
from search.conftest import NOISY

from t2ialign import cli
from t2ialign.cli import app
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign.storage.image_files import read_image
from t2ialign.testing.ranks import ranks

FK = "fk-steering={particles = 4, lmbda = 20.0}"
SEARCHES = [
    FK,
    "evo-search={population_size_schedule = [4, 3, 3], elite_size = 1}",
    "zero-order={neighbours = 2}",
    "image-select",
    "dav-search={value_gradient = false, reward_unit = 'raw'}",
]


@pytest.fixture
def command(toy_spec, tmp_path):
    """Run ``sample`` on a spec whose optimizer is no search."""
    path = toy_spec("fk")
    tree = tomllib.loads(path.read_text())
    path.write_text(tomli_w.dumps(tree | {"optimizer": {"kind": "toy-search"}}))

    def run(*arguments: str):
        given = [str(one) for one in (path, "--out", tmp_path / "out", *arguments)]
        return typer.testing.CliRunner().invoke(app, ["sample", *given])

    run.path, run.out = path, tmp_path / "out"
    return run


@pytest.mark.parametrize("search", SEARCHES)
def test_better_images_than_without(command, search):
    done = command("-p", "green", "-p", "a prompt of no file", "-n", "2", "--seed", "5", "--search", search)
    assert done.exit_code == 0, done.output
    said = json.loads((command.out / "search.json").read_text())
    assert said["search"]["kind"] == search.partition("=")[0]
    assert [one["seed"] for one in said["images"]] == [5, 6, 5, 6]
    for one in said["images"]:
        assert (command.out / one["file"]).exists()
        assert {"toy-redness", "toy-darkness"} < one.keys()
    problem = assemble(specs.load(command.path), report=lambda text: None)
    rows = problem.encode(["green", "a prompt of no file"])[[0, 0, 1, 1]]
    plain = problem.rewards.score(problem.generate(rows, [5, 6, 5, 6]), rows.prompts)["toy-redness"]
    found = torch.tensor([one["toy-redness"] for one in said["images"]])
    if "dav" not in search:  # follows a posterior and promises nothing of a single image
        assert (found >= plain - 1e-6).all()
    assert found.mean() > plain.mean()


def test_the_same_image_in_any_company(command):
    assert command("-p", "green", "-p", "red", "-n", "2", "--search", FK).exit_code == 0
    together = json.loads((command.out / "search.json").read_text())["images"]
    for file in command.out.iterdir():
        file.unlink()
    assert command("-p", "red", "--seed", "1", "--search", FK, "--set", "run.micro_batch=1").exit_code == 0
    (alone,) = json.loads((command.out / "search.json").read_text())["images"]
    assert alone["toy-redness"] == pytest.approx(together[3]["toy-redness"], abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its ranks")
@pytest.mark.parametrize("search", SEARCHES)
def test_two_ranks_write_the_files_of_one(command, tmp_path, search):
    """Three images: an uneven share. Batches of other sizes may round their sums otherwise, and nothing more."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for size, folder in enumerate(folders, 1):
        words = ["-p", "green", "-p", "red", "-p", "a prompt of no file", "--seed", "3", "--search", search]

        def work(rank: int, folder=folder, words=words) -> None:
            sys.argv = ["t2ialign", "sample", str(command.path), "--out", str(folder), *words]
            cli.main()

        ended = ranks(size, work, tmp_path / "logs")
        assert not any(ended.codes), ended.text
        assert ended.text.count("3 images of 3 prompts") == 1
    assert sorted(file.name for file in folders[0].iterdir()) == sorted(file.name for file in folders[1].iterdir())
    one, two = (json.loads((folder / "search.json").read_text()) for folder in folders)
    assert one["search"] == two["search"]
    assert len(one["images"]) == 3
    for first, second in zip(one["images"], two["images"], strict=True):
        assert second == pytest.approx(first, abs=1e-4)  # texts are compared as they are
        pixels, others = (read_image(folder / first["file"])[0] for folder in folders)
        assert (pixels - others).abs().max() < 1.5 / 255


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ("toy-search", "'toy-search' trains and is no search; searches: dav-search, evo-search, fk-steering"),
        ("fk-stering", "did you mean 'fk-steering'?"),
        ("fk-steering={particles: 4}", "write options as a TOML inline table"),
        ("fk-steering={particle = 4}", "optimizer.particle"),
        ("fk-steering={particles = 0}", "optimizer.particles = 0: must be >= 1"),
    ],
)
def test_mistakes_are_told_in_one_message(command, search, says):
    done = command("-p", "green", "--search", search)
    assert done.exit_code == 2 or "Error" in repr(done.exception)
    assert says in done.output + str(done.exception)
    assert not command.out.exists()


def test_a_search_needs_what_it_needs_in_a_run(command):
    assert NOISY["fresh"]
    done = command("-p", "green", "--search", FK, "--set", "sampler.fresh=0.0")
    assert "stochastic" in done.output + str(done.exception)
