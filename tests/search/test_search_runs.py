"""Whole runs of the searches on the toy world."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ranks import Meeting, Rank
from safetensors.torch import load_file
from search.conftest import SEARCHES

from t2ialign import SpecError
from t2ialign.errors import PartError
from t2ialign.evaluation.counting import counting
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign_reno import noise_search

QUIET = Display(quiet=True)
EVERY = pytest.mark.parametrize("search", SEARCHES)


def quietly(spec, *arguments):
    return load_optimizer(assemble(spec, *arguments, report=lambda text: None))


def delivered(run) -> dict[str, dict]:
    return {
        folder.name: {
            "latents": load_file(folder / "latents.safetensors")["latents"],
            **json.loads((folder / "search.json").read_text()),
        }
        for folder in sorted((run.path / "export" / "images").iterdir())
    }


@EVERY
def test_a_run_improves_every_image_and_delivers_it(toy_spec, search):
    run = runner.start(specs.load(toy_spec(search)), QUIET)
    found = delivered(run)
    assert len(found) == 5
    for one in found.values():
        rewards = one["rewards"]
        assert rewards["best"]["toy-redness"] >= rewards["initial"]["toy-redness"] - 1e-6
        assert one["reward"] == pytest.approx(rewards["best"]["toy-redness"], abs=1e-6)
    summary = run.summary()["paired"]["tuned"]["toy-redness"]
    assert summary["difference"] > 0
    exported = json.loads((run.path / "export" / "summary.json").read_text())["paired"]["tuned"]["toy-redness"]
    assert summary["difference"] == pytest.approx(exported["difference"], abs=1e-6)
    assert "images drawn again differ" in (run.path / "export" / "README.md").read_text()


@EVERY
def test_micro_batches_and_company_change_nothing(toy_spec, search):
    """All at once, two at a time, one at a time, and in forwards of one image and of three."""
    found = []
    for per_step, micro_batch in [(5, 64), (2, 64), (1, 64), (5, 1), (5, 3)]:
        optimizer = quietly(
            specs.load(toy_spec(search, prompts={"per_step": per_step}, run={"micro_batch": micro_batch}))
        )
        found.append(optimizer.generate(optimizer.problem.conditioning, range(5)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


@EVERY
def test_ranks_share_the_searches_and_find_the_same(toy_spec, search):
    spec = specs.load(toy_spec(search, prompts={"per_step": 3}))
    steps = spec.optimizer_config.plan(spec).steps
    alone = quietly(spec)
    for index in range(steps):
        alone.step(index)
    meeting = Meeting(2)
    ranks = [quietly(spec, Rank(rank, 2, meeting)) for rank in range(2)]

    def work(optimizer):
        for index in range(steps):
            optimizer.step(index)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ranks))
    for one in alone.searches:
        torch.testing.assert_close(ranks[0].archive.read(one).noise, alone.archive.read(one).noise)


@pytest.mark.parametrize("search", ["fk", "evo", "zero-order"])
def test_a_crash_changes_nothing(toy_spec, search, monkeypatch):
    options = {"prompts": {"per_step": 2}} if search == "zero-order" else {"optimizer": {"passes": 2}}
    whole = runner.start(specs.load(toy_spec(search, **options), ["run.name=whole"]), QUIET)
    step = noise_search.NoiseSearch.step

    def dying(self, index):
        if index == 3:
            raise RuntimeError("power cut")
        return step(self, index)

    killed = specs.load(toy_spec(search, **options), ["run.name=killed"])
    with monkeypatch.context() as patch:
        patch.setattr(noise_search.NoiseSearch, "step", dying)
        with pytest.raises(PartError, match="power cut"):
            runner.start(killed, QUIET)
    killed = runner.resume(whole.path.parent / "killed", QUIET)
    for folder in (run.path for run in (whole, killed)):
        assert (folder / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
        for file in sorted((whole.path / "export" / "images").rglob("*.*")):
            same = folder / file.relative_to(whole.path)
            assert same.read_bytes() == file.read_bytes()


@EVERY
def test_what_a_search_costs_is_what_the_plan_says(toy_spec, search):
    spec = specs.load(toy_spec(search, prompts={"per_step": 3}))
    optimizer = quietly(spec)
    conditioning = optimizer.problem.conditioning[:3]
    with counting() as count:
        optimizer.generate(conditioning, [11, 12, 13])
    plan, one = spec.optimizer_config.plan(spec), spec.sampler_config.evaluations()
    if search == "zero-order":
        assert count.rows == 3 * one * (spec.run.steps + 1)  # the best noise is drawn once more
    else:
        assert count.rows == 3 * plan.evaluations
    assert count.calls <= count.rows / 3  # all prompts, particles and members go together


def test_one_particle_is_plain_sampling(toy_spec):
    """Particles cost nothing but evaluations: the first of them is the base's image while nothing is resampled."""
    optimizer = quietly(specs.load(toy_spec("fk", optimizer={"particles": 1})))
    problem = optimizer.problem
    plain = problem.generate(problem.conditioning, range(5))
    torch.testing.assert_close(optimizer.generate(problem.conditioning, range(5)), plain)


@pytest.mark.parametrize("potential", ["difference", "max", "sum", "reward"])
def test_negative_rewards_steer_as_well(toy_spec, potential):
    """A reward that is below zero everywhere finds the images of one that is not."""
    tables = {"optimizer": {"potential": potential, "adaptive": False, "lmbda": 30.0}}
    plain = quietly(specs.load(toy_spec("fk", **tables)))
    problem = plain.problem
    images = plain.generate(problem.conditioning, range(5))
    combine = problem.rewards.combine
    problem.rewards.combine = lambda raw: combine(raw) - 3.0
    assert problem.rewards.combine(problem.rewards.score(images, problem.prompts)).max() < 0
    torch.testing.assert_close(plain.generate(problem.conditioning, range(5)), images)


def test_steering_moves_where_the_reward_points(toy_spec):
    """At equal cost, resampled particles give redder images on average than particles left alone."""
    means = []
    for lmbda in (0.0, 60.0):
        optimizer = quietly(specs.load(toy_spec("fk", optimizer={"lmbda": lmbda, "particles": 8})))
        problem = optimizer.problem
        rows = [row for row in range(5) for _ in range(12)]
        images = optimizer.generate(problem.conditioning[rows], range(len(rows)))
        means.append(problem.rewards.score(images, problem.conditioning[rows].prompts)["toy-redness"].mean().item())
    assert means[1] > means[0]


def test_a_score_that_is_no_number_kills_its_particle_alone(toy_spec):
    """One prompt's scores are NaN throughout; the others' images are as they would be without it."""
    tables = {"reward": [{"kind": "toy-redness"}, {"kind": "toy-broken"}], "run": {"nonfinite": "drop"}}
    optimizer = quietly(specs.load(toy_spec("fk", **tables)))
    problem = optimizer.problem
    found = optimizer.generate(problem.conditioning, range(5))
    plain = problem.generate(problem.conditioning, range(5))
    bad = problem.prompts.index("blue")
    torch.testing.assert_close(found[bad], plain[bad])  # nothing was found: the image of plain sampling
    good = [row for row in range(5) if row != bad]
    again = optimizer.generate(problem.conditioning[good], good)
    torch.testing.assert_close(found[good], again)


@pytest.mark.parametrize("rule", ["keep", "paper", "upstream"])
def test_zero_order_delivers_its_best_under_every_rule(toy_spec, rule):
    run = runner.start(specs.load(toy_spec("zero-order", optimizer={"pivot_rule": rule, "cosine": 0.5})), QUIET)
    for name, one in delivered(run).items():
        lines = (run.path / "export" / "images" / name / "trajectory.jsonl").read_text().splitlines()
        totals = [json.loads(line)["total"] for line in lines]
        assert len(totals) == 9
        assert one["reward"] == max(totals)
        norms = {round(one["latents"].norm().item(), 3)}
        if rule != "upstream":  # the search never leaves its first sphere
            initial = quietly(run.spec()).problem.backend.noise([one["initial_seed"]])
            assert norms == {round(initial.norm().item(), 3)}


@pytest.mark.parametrize(
    ("search", "options", "says"),
    [
        ("fk", {"particle": 4}, "particles"),
        ("fk", {"potential": "diff"}, "difference"),
        ("evo", {"population_size_schedule": [5, 2, 4, 4, 4]}, "leaves no child"),
        ("evo", {"evolution_schedule": [0, 2]}, "one more than"),
        ("evo", {"evolution_schedule": [0, 1, 2, 5]}, "the sampler has 5 steps"),
        ("evo", {"evolution_schedule": [0, 2, 1, 3]}, "ascending"),
        ("evo-noise", {"evolution_schedule": [0, 2]}, "without noise is searched at step 0"),
        ("zero-order", {"cosine": 1.0}, "must be < 1"),
    ],
)
def test_what_cannot_work_is_refused(toy_spec, search, options, says):
    with pytest.raises(SpecError, match=says):
        specs.load(toy_spec(search, optimizer=options))


def test_particles_need_a_sampler_with_noise(toy_spec):
    with pytest.raises(SpecError, match="stochastic"):
        specs.load(toy_spec("fk", sampler={"fresh": 0.0}))
