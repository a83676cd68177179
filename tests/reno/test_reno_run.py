"""Whole runs of noise optimisation on the toy world."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from ranks import Meeting, Rank
from safetensors.torch import load_file

from t2ialign import Optimizer
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage import images

QUIET = Display(quiet=True)


def searches(run) -> dict[str, dict]:
    """Everything delivered, by image."""
    return {
        folder.name: {
            "noise": load_file(folder / "latents.safetensors")["latents"],
            "picture": (folder / "best.png").read_bytes(),
            "trajectory": (folder / "trajectory.jsonl").read_text(),
            **json.loads((folder / "search.json").read_text()),
        }
        for folder in sorted((run.path / "export" / "images").iterdir())
    }


def test_a_run_improves_every_image_and_delivers_it(reno_spec):
    run = runner.start(specs.load(reno_spec()), QUIET)
    found = searches(run)
    assert list(found) == [f"{index:05d}-0" for index in range(5)]
    for one in found.values():
        rewards = one["rewards"]
        assert rewards["best"]["toy-redness"] > rewards["initial"]["toy-redness"]
        assert set(rewards["best"]) == {"toy-redness", "toy-darkness"}
        assert one["reward"] == pytest.approx(rewards["best"]["toy-redness"], abs=1e-6)
        lines = [json.loads(line) for line in one["trajectory"].splitlines()]
        assert [line["iteration"] for line in lines] == list(range(6))
        assert max(line["total"] for line in lines) == one["reward"]
        assert lines[one["best_iteration"]]["total"] == one["reward"]
        assert lines[-1]["gradient_norm"] is None  # nothing moves after the last image
    summary = json.loads((run.path / "export" / "summary.json").read_text())
    assert summary["paired"]["tuned"]["toy-redness"]["win_rate"] == 1.0
    evaluation = json.loads((run.path / "evaluation" / "summary.json").read_text())
    for variant in ("base", "tuned"):  # the evaluation shows the run's own images
        assert evaluation["variants"][variant]["toy-redness"]["mean"] == pytest.approx(
            summary["variants"][variant]["toy-redness"]["mean"], abs=1e-6
        )


def noises(run) -> dict[str, torch.Tensor]:
    return {name: one["noise"] for name, one in searches(run).items()}


def test_slots_and_micro_batches_change_nothing(reno_spec):
    """All at once, two at a time, one at a time, and in forwards of one image: the same noise for every prompt."""
    sizes = [(5, 64), (2, 64), (1, 64), (5, 1)]
    found = []
    for per_step, micro_batch in sizes:
        path = reno_spec(prompts={"per_step": per_step}, run={"micro_batch": micro_batch})
        found.append(noises(runner.start(specs.load(path), QUIET)))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, noise in other.items():
            torch.testing.assert_close(noise, found[0][name], rtol=1e-5, atol=1e-5)


def test_the_best_of_several_restarts_is_delivered(reno_spec):
    one = searches(runner.start(specs.load(reno_spec()), QUIET))
    run = runner.start(specs.load(reno_spec(optimizer={"restarts": 3})), QUIET)
    three = searches(run)
    assert len(list((run.path / "output").iterdir())) == 15
    assert all(three[name]["reward"] >= one[name]["reward"] - 1e-6 for name in one)
    assert any(three[name]["initial_seed"] != one[name]["initial_seed"] for name in one)
    for name, best in three.items():
        every = [
            json.loads((run.path / "output" / f"{name}-{start}" / "search.json").read_text()) for start in range(3)
        ]
        assert len({start["initial_seed"] for start in every}) == 3
        assert best["reward"] == max(start["reward"] for start in every)


def test_an_early_stop_gives_its_place_to_the_next_prompt(reno_spec):
    """Steps far too long: no search improves after its first image, so each ends after two and the next begins."""
    stopping = reno_spec(
        optimizer={"learning_rate": 1e5, "patience": 1, "regularisation": 1.0}, prompts={"per_step": 2}
    )
    run = runner.start(specs.load(stopping, ["run.steps=50"]), QUIET)
    lengths = [one["iterations"] for one in searches(run).values()]
    assert len(lengths) == 5
    assert max(lengths) < 50
    running = [line.get("search/running") for line in run.metrics()]
    assert running.index(None) < 3 * max(lengths)  # all over long before the planned 150 steps
    assert len(running) == 150


def test_the_same_image_whether_the_run_searched_it_or_the_evaluation(reno_spec, tmp_path):
    """An evaluation on other prompts than the run's searches them on the spot, with the same result."""
    whole = runner.start(specs.load(reno_spec()), QUIET)
    (tmp_path / "one.txt").write_text("red\n")
    other = reno_spec(prompts={"file": "one.txt"}, evaluation={"prompts": "prompts.txt"})
    (tmp_path / "prompts.txt").write_text("red\ngreen\nblue\nblack\nwhite\n")
    (tmp_path / "one.txt").write_text("red\n")
    part = runner.start(specs.load(other), QUIET)
    assert list(searches(part)) == ["00000-0"]
    tables = [json.loads((run.path / "evaluation" / "summary.json").read_text()) for run in (whole, part)]
    for variant in ("base", "tuned"):
        means = [table["variants"][variant]["toy-redness"]["mean"] for table in tables]
        assert means[0] == pytest.approx(means[1], abs=1e-6)


def test_grids_begin_at_the_base_and_end_at_the_best(reno_spec):
    problem = assemble(specs.load(reno_spec()), report=lambda text: None)
    optimizer = load_optimizer(problem)
    seeds = [item.seed for item in optimizer.items]
    base = problem.generate(problem.conditioning, seeds)
    assert torch.equal(optimizer.generate(problem.conditioning, seeds), base)
    rewards = [problem.rewards.score(base, problem.prompts)["toy-redness"]]
    for index in range(problem.spec.optimizer_config.plan(problem.spec).steps):
        optimizer.step(index)
        images = optimizer.generate(problem.conditioning, seeds)
        rewards.append(problem.rewards.score(images, problem.prompts)["toy-redness"])
        assert (rewards[-1] >= rewards[-2] - 1e-6).all()  # what is shown is the best so far
    assert (rewards[-1] > rewards[0]).all()


def test_a_prompt_that_stands_twice_gets_images_of_its_own_each_time(reno_spec):
    path = reno_spec(texts="red\ngreen\nred\n", prompts={"images_per_prompt": 2})
    run = runner.start(specs.load(path), QUIET)
    assert len(searches(run)) == 6
    first, again = (run.path / "export" / "images" / f"{row}-0" / "initial.png" for row in ("00000", "00002"))
    assert pixels(first) != pixels(again)


def test_every_iteration_on_request(reno_spec):
    run = runner.start(specs.load(reno_spec(optimizer={"save_iterations": True})), QUIET)
    folders = sorted((run.path / "output" / "iterations").iterdir())
    assert len(folders) == 5
    for folder in folders:
        assert [file.name for file in sorted(folder.iterdir())] == [f"{i:04d}.png" for i in range(6)]
        found = run.path / "output" / folder.name
        best = json.loads((found / "search.json").read_text())["best_iteration"]
        assert pixels(folder / "0000.png") == pixels(found / "initial.png")
        assert pixels(folder / f"{best:04d}.png") == pixels(found / "best.png")


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_the_found_noise_can_be_drawn_again_by_another_sampler(reno_spec):
    second, wide = {"kind": "toy-twice"}, {"image_size": [4, 6]}
    run = runner.start(specs.load(reno_spec(backend=wide, optimizer={"second_sampler": second})), QUIET)
    select = {"kind": "image-select", "learning_rate": None, "second_sampler": None}
    twice = reno_spec(backend=wide, optimizer=select, sampler=second)
    problem = assemble(specs.load(twice), report=lambda text: None)
    for folder in sorted((run.path / "export" / "images").iterdir()):
        noise = load_file(folder / "latents.safetensors")["latents"]
        assert noise.shape == (1, 3, 4, 6)
        (image,) = problem.generate(problem.conditioning[[int(folder.name[:5])]], [0], noise)
        assert pixels(folder / "best-second.png") == images.to_pil(image).tobytes()
        assert pixels(folder / "best-second.png") != pixels(folder / "best.png")


def test_image_select_keeps_the_best_of_n_noises(reno_spec):
    path = reno_spec(optimizer={"kind": "image-select", "learning_rate": None}, reward=[{"kind": "toy-darkness"}])
    run = runner.start(specs.load(path), QUIET)
    problem = assemble(run.spec(), report=lambda text: None)
    for name, one in searches(run).items():
        lines = [json.loads(line) for line in one["trajectory"].splitlines()]
        assert len(lines) == 6
        best = max(range(6), key=lambda i: lines[i]["total"])
        assert one["best_iteration"] == best
        assert lines[0]["total"] == one["rewards"]["initial"]["toy-darkness"]
        image = problem.generate(problem.conditioning[[int(name[:5])]], [one["best_seed"]])
        assert problem.rewards.score(image, ["-"])["toy-darkness"].item() == one["reward"]
        assert torch.equal(problem.backend.noise([one["best_seed"]]), one["noise"])
    other = runner.start(specs.load(path, ["run.seed=1"]), QUIET)
    seeds = [[(one["initial_seed"], one["best_seed"]) for one in searches(each).values()] for each in (run, other)]
    assert [initial for initial, _ in seeds[0]] == [initial for initial, _ in seeds[1]]
    assert seeds[0] != seeds[1]  # the run's seed decides what is tried, the evaluation's where it starts


def test_peers_share_the_rows_and_find_the_same(reno_spec):
    """Two ranks in lockstep, each with half of every batch (an odd one here), against one process."""
    spec = specs.load(reno_spec(prompts={"per_step": 3}))
    steps = spec.optimizer_config.plan(spec).steps
    alone = load_optimizer(assemble(spec, report=lambda text: None))
    for index in range(steps):
        alone.step(index)
    meeting = Meeting(2)
    # One after the other: the toy networks draw their weights from the generator that all threads share.
    ranks = [load_optimizer(assemble(spec, Rank(rank, 2, meeting), lambda text: None)) for rank in range(2)]

    def work(optimizer: Optimizer) -> None:
        for index in range(steps):
            optimizer.step(index)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ranks))
    main = next(optimizer for optimizer in ranks if optimizer.problem.world.is_main)
    for search in alone.searches:
        torch.testing.assert_close(main.archive.read(search).noise, alone.archive.read(search).noise)
    for optimizer in ranks:
        for name, tensor in optimizer.state().tensors.items():
            torch.testing.assert_close(tensor, alone.state().tensors[name], equal_nan=True)
