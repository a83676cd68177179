"""Neither micro-batches, nor ranks, nor an interruption change what is learnt."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from ranks import Meeting, Rank

from t2ialign import Denoiser
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign.testing import installed, write_spec
from t2ialign_rl import plugin

FLOW = {
    "backend": {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 4}},
}
#: An odd number of images: two ranks share them unequally.
ODD = {"file": "prompts.txt", "per_step": 3, "images_per_prompt": 3}
METHODS = [
    {"kind": "nft", "updates": 2, "ema": 0.9},
    {"kind": "awm", "updates": 2},
    {"kind": "awm", "updates": 2, "ratio": "image", "kl_form": "elbo"},
    {"kind": "online-dpo"},
    {"kind": "flow-grpo", "kl": 0.1, "updates": 2},
    {"kind": "flow-grpo", "kl": 0.1, "kl_form": "velocity", "log_prob": "guard", "updates": 2, "ema": 0.9},
    {"kind": "flow-grpo", "window": 2, "window_course": "random", "same_noise": True},
    {"kind": "draft", "last": 2, "kl": 0.1},
    {"kind": "draft", "last_draw": "each"},
    {"kind": "srpo"},
]


def optimizers(folder, optimizer, worlds=(None,), prompts=ODD, micro_batch=64, fresh=0.5):
    run = {"steps": 4, "out": str(folder / "runs"), "micro_batch": micro_batch}
    flow = FLOW | {"sampler": {"kind": "toy-steps", "fresh": fresh}}
    path = write_spec(folder, **flow, run=run, prompts=prompts, optimizer={"learning_rate": 1e-3, **optimizer})
    with installed(plugin):
        # One after the other: the toy networks draw their weights from the generator that all threads share.
        return [load_optimizer(assemble(specs.load(path), world, lambda text: None)) for world in worlds]


def name_of(optimizer):
    return "-".join(str(value) for value in optimizer.values())


def steps(optimizer, first=0, last=2):
    return [optimizer.step(index).metrics for index in range(first, last)]


@pytest.mark.parametrize("optimizer", METHODS, ids=name_of)
def test_two_ranks_learn_what_one_process_does(tmp_path, optimizer):
    (alone,) = optimizers(tmp_path, optimizer)
    expected, meeting = steps(alone), Meeting(2)
    ranks = optimizers(tmp_path, optimizer, [Rank(rank, 2, meeting) for rank in range(2)])
    with ThreadPoolExecutor(2) as pool:
        lines = list(pool.map(steps, ranks))
    for rank, metrics in zip(ranks, lines, strict=True):
        for line, other in zip(metrics, expected, strict=True):
            assert line == pytest.approx(other, rel=1e-3, abs=1e-5)
        for name, tensor in rank.state().tensors.items():
            torch.testing.assert_close(tensor, alone.state().tensors[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", METHODS, ids=name_of)
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path, optimizer):
    through, first = optimizers(tmp_path, optimizer) + optimizers(tmp_path, optimizer)
    expected = steps(through, 0, 4)
    steps(first, 0, 2)
    (second,) = optimizers(tmp_path, optimizer)
    second.load_state(first.state())
    assert steps(second, 2, 4) == expected[2:]
    for name, tensor in second.state().tensors.items():
        assert torch.equal(tensor, through.state().tensors[name]), name


WINDOW = {"window": 2, "window_first": 1, "same_noise": True}
GUARD = {"log_prob": "guard", "kl_form": "velocity"}


@pytest.mark.parametrize(
    "options", [{}, WINDOW, {"log_prob": "distance"}, GUARD], ids=["plain", "window", "distance", "guard"]
)
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 7, 64])
def test_grpo_starts_at_ratio_one_and_at_the_base(tmp_path, options, micro_batch):
    grpo = {"kind": "flow-grpo", "kl": 0.1, **options}
    (optimizer,) = optimizers(tmp_path, grpo, micro_batch=micro_batch)
    metrics = optimizer.step(0).metrics
    assert metrics["learn/ratio_error"] < 1e-5
    assert metrics["learn/kl"] < 1e-10
    assert metrics["learn/gradient_norm"] > 0


def test_grpo_draws_a_prompt_once_until_the_window(tmp_path, monkeypatch):
    """Four steps for 3 x 3 images: two steps and the first of the window for a row a prompt, then for all."""
    prompts = {**ODD, "images_per_prompt": 3}
    options = {"window": 1, "window_course": "fixed", "window_first": 1, "timestep_fraction": 1.0}
    seen = {}
    for same in (False, True):
        (optimizer,) = optimizers(tmp_path, {"kind": "flow-grpo", "same_noise": same, **options}, prompts=prompts)
        rows = []
        network = optimizer.problem.backend.net[1]
        hook = network.register_forward_hook(lambda _network, x, _y, rows=rows: rows.append(len(x[0])))
        optimizer.step(0)
        hook.remove()
        seen[same] = rows[:4]
    assert seen == {False: [9, 9, 9, 9], True: [3, 3, 9, 9]}


def test_grpo_learns_from_the_window_alone(tmp_path):
    (optimizer,) = optimizers(
        tmp_path, {"kind": "flow-grpo", "window": 2, "window_course": "sliding", "window_every": 1}
    )
    batch = optimizer.problem.draw(0)
    noisy = []
    for index in range(4):
        drawn = optimizer.rollout(batch, True, optimizer.windowed(index, 3))
        noisy.append((drawn.log_probs != 0).any(0).nonzero().flatten().tolist())
    assert noisy == [[0, 1], [1, 2], [2], [0, 1]]


class EndsAtTheBase(Denoiser):
    """A denoiser whose last call is without the LoRA, which changes no image before the first update."""

    def __init__(self, problem, conditioning, calls):
        inner = problem.backend.denoiser(conditioning)
        super().__init__(inner.path, conditioning)
        self.inner, self.adapter, self.calls = inner, problem.adapter, calls

    def predict(self, x, t):
        with self.adapter.disabled() if self.evaluations == self.calls else nullcontext():
            return self.inner.predict(x, t)

    def rows(self, index):
        raise NotImplementedError


def test_grpo_follows_the_gradient_of_the_mean_reward(tmp_path):
    """The exact one goes through all steps that have noise, the last has none; the policy's has its direction, and the
    size that means over dimensions, steps and advantages give it: 1 / (dimensions x steps x deviation)."""
    prompts = {"file": "prompts.txt", "per_step": 5, "images_per_prompt": 3000}
    options = {"kind": "flow-grpo", "timestep_fraction": 1.0, "max_grad_norm": 1e9}
    (trained,) = optimizers(tmp_path, options, prompts=prompts, micro_batch=4096, fresh=0.9)
    problem, parameters = trained.problem, list(trained.parameters.values())
    drawn = trained.rollout(problem.draw(0), True)
    trained.rollout, trained.solver.step = (lambda *given: drawn), (lambda: None)
    trained.step(0)
    found = torch.cat([parameter.grad.flatten() for parameter in parameters])

    batch, (end, steps) = problem.draw(0), (4, 3)
    every = range(0, len(batch.seeds), 10)
    rows, seeds = batch.conditioning[list(every)], [batch.seeds[row] for row in every]
    latents = problem.sampler.sample(EndsAtTheBase(problem, rows, end), problem.backend.noise(seeds), seeds)
    images = problem.backend.decode(latents)
    mean = problem.rewards.score(images, rows.prompts)["toy-redness"].mean()
    exact = -torch.cat([one.flatten() for one in torch.autograd.grad(mean, parameters)])
    assert torch.cosine_similarity(found, exact, dim=0) > 0.6
    scale = steps * drawn.latents[0].numel() * drawn.scores["toy-redness"].std()
    assert (found @ exact / exact.square().sum() * scale).item() == pytest.approx(1, abs=0.25)
