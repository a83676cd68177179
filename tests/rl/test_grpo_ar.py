"""GRPO on the embedded VAR."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from ranks import Meeting, Rank

from t2ialign import T2IAlignError
from t2ialign.evaluation.counting import told
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs

SPEC = Path(__file__).parents[2] / "specs" / "grpo-ar-var-shapes.toml"
SMALL = ("prompts.per_step=2", "prompts.images_per_prompt=3", "run.device='cpu'")


def optimizer(*overrides, world=None):
    return load_optimizer(assemble(specs.load(SPEC, [*SMALL, *overrides]), world, lambda text: None))


def after(trained, first, last):
    lines = [trained.step(index).metrics for index in range(first, last)]
    return lines, trained.state().tensors


@pytest.mark.parametrize(
    ("micro_batch", "options"),
    [
        (1, ()),
        (4, ("optimizer.scales=3",)),
        (64, ("optimizer.policy='surrogate'",)),
        (4, ("optimizer.policy='guided'", "optimizer.scales=3")),
    ],
)
def test_the_first_ratio_is_one_and_the_start_is_the_base(micro_batch, options):
    """With two updates old log-probabilities are computed before; only the second is away from them."""
    trained = optimizer(f"run.micro_batch={micro_batch}", "optimizer.updates=2", *options)
    trained.solver.param_groups[0]["lr"] = 0.0  # nothing moves: both updates are at the start
    metrics = trained.step(0).metrics
    assert metrics["learn/ratio_error"] < 1e-4
    assert metrics["learn/ratio"] == pytest.approx(1, abs=1e-5)
    assert abs(metrics["learn/kl"]) < 1e-10
    assert metrics["learn/gradient_norm"] > 0


def test_micro_batches_change_nothing():
    (expected, whole), (found, parts) = (
        after(optimizer(f"run.micro_batch={size}", "optimizer.updates=2"), 0, 2) for size in (64, 5)
    )
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-2, abs=1e-4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-2, atol=1e-3)


def test_two_ranks_learn_what_one_process_does():
    """Of three images of a prompt one rank has two."""
    small = ("prompts.per_step=1", "optimizer.ema=0.9")
    (expected, whole), meeting = after(optimizer(*small), 0, 1), Meeting(2)
    ranks = [optimizer(*small, world=Rank(rank, 2, meeting)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for lines, tensors in pool.map(lambda rank: after(rank, 0, 1), ranks):
            assert lines[0] == pytest.approx(expected[0], rel=1e-2, abs=1e-4)
            for name, tensor in whole.items():
                torch.testing.assert_close(tensors[name], tensor, rtol=1e-2, atol=1e-3)


def test_a_step_tells_of_its_images_as_they_are_drawn():
    """A model without a denoiser, whose calls are told elsewhere."""
    told_of, trained = [], optimizer("prompts.per_step=1", "run.micro_batch=2")
    with told(trained.problem, lambda calls, images: nullcontext(told_of.append)):
        after(trained, 0, 1)
    assert told_of == [2, 1]


def test_a_resumed_run_goes_on_as_if_never_stopped():
    expected, end = after(optimizer(), 0, 3)
    stopped = optimizer()
    after(stopped, 0, 1)
    resumed = optimizer()
    resumed.load_state(stopped.state())
    found, tensors = after(resumed, 1, 3)
    assert found == expected[1:]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in end.items())


def test_updates_far_from_the_base_are_left_out():
    trained = optimizer("optimizer.max_kl=1e-9", "optimizer.learning_rate=0.01")
    after(trained, 0, 1)
    before = trained.state().tensors
    metrics = trained.step(1).metrics
    assert metrics["learn/whole_kl"] > 1e-9
    assert all(torch.equal(trained.state().tensors[name], before[name]) for name in trained.parameters)


def test_models_without_tokens_are_refused():
    with pytest.raises(T2IAlignError, match="'tokens'"):
        specs.load(SPEC, ["backend.more_smooth=true"])
    with pytest.raises(T2IAlignError, match="needs a backend that is 'tokens'"):
        specs.load(SPEC.parent / "nft-shapes.toml", ["optimizer={kind='grpo-ar'}"])
