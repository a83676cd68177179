"""What a GPU adds: memory peaks, CUDA graphs, streams, options of [backend], tolerances, and going on after a stop.

Every body runs on a CPU as well where it says something there.
"""

from __future__ import annotations

import pytest
import torch

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.tensors.batching import image_tolerance
from t2ialign_eggroll.checks import member_images
from t2ialign_eggroll.population import Chunk

EXACT = 5e-3
#: Options of [backend] that a one-step generator has, and the largest mean difference of images from the plain ones.
OPTIONS = {
    "backend.vae_micro_batch=2": EXACT,
    "backend.vae_slicing=true": EXACT,
    "backend.gradient_checkpointing=['network', 'decoder']": EXACT,
    "backend.offload='model'": EXACT,
    "backend.offload='blocks'": EXACT,
    "backend.compile='decoder'": EXACT,
    "backend.compile='default'": EXACT,
    "backend.compile='reduce-overhead'": EXACT,
    "backend.vae_dtype='bfloat16'": 0.02,
    "backend.dtype='float16'": 0.02,
    "backend.dtype='bfloat16'": 0.05,
    "backend.quantization.kind='int8'": 0.05,
    "backend.quantization.kind='float8'": 0.1,
}
#: Those that say something on a CPU and that no other test has there.
ON_CPU = ("backend.vae_micro_batch=2", "backend.dtype='bfloat16'")


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.parametrize("device", ["cuda"], indirect=True)(test))


@torch.no_grad()
def drawn(problem, count=4):
    seeds = list(range(count))
    return problem.generate(problem.conditioning[[0] * count], seeds).float().cpu()


def peak(run):
    """Memory that a call takes at most beyond what is there; the first call warms up."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize(
    ("device", "option"),
    [
        *(("cpu", option) for option in ON_CPU),
        *(pytest.param("cuda", option, marks=pytest.mark.gpu) for option in OPTIONS),
    ],
    indirect=["device"],
)
def test_options_of_the_backend_keep_the_images(load, option):
    if "quantization" in option:
        pytest.importorskip("torchao")
    plain, other = assemble(load()), assemble(load(option))
    assert (drawn(plain) - drawn(other)).abs().mean() <= OPTIONS[option]
    load_optimizer(other).step(0)


def test_an_image_differs_with_its_batch_by_no_more_than_the_tolerance(load, device):
    problem = assemble(load())
    together, alone = drawn(problem, 8), drawn(problem, 1)
    assert (together[0] - alone[0]).abs().max() <= image_tolerance("float32", device)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_member_in_a_batch_draws_what_it_draws_alone(load, device, dtype):
    problem = assemble(load(f"backend.dtype='{dtype}'", "optimizer.sigma=0.5"))
    optimizer = load_optimizer(problem)
    optimizer.prepare()
    batch, noise = problem.draw(0), optimizer.member_noise(0, slice(0, 4))
    together, alone = (
        member_images(problem, optimizer.space, noise, Chunk(4, 2), batch, form).float() for form in ("auto", None)
    )
    effect = (alone[:2] - alone[2:]).abs().mean()
    error = (together - alone).abs().mean()
    assert effect > 0
    assert error < (1e-3 if dtype == "float32" else 0.5) * effect


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(load, device):
    """To the last digit on a CPU, up to rounding on a GPU."""
    steady = "optimizer.schedule='constant'"
    whole = runner.start(load(steady, "run.steps=2", "run.name='whole'"))
    first = runner.start(load(steady, "run.steps=1", "run.name='first'"))
    longer = runner.resume(first.path, None, ["run.steps=2"])
    far = {"rel": 0, "abs": 0} if device.type == "cpu" else {"rel": 0.02, "abs": 1e-3}
    assert len(longer.metrics()) == len(whole.metrics()) == 2
    for found, expected in zip(longer.metrics(), whole.metrics(), strict=True):
        assert found == pytest.approx(expected, **far)


@on_gpu
def test_a_smaller_micro_batch_takes_less_memory(load, device):
    def step(size):
        optimizer = load_optimizer(
            assemble(load("prompts.per_step=64", "optimizer.population=8", f"run.micro_batch={size}"))
        )
        return peak(lambda: optimizer.step(0))

    assert step(64) < step(512) / 2


@on_gpu
def test_a_smaller_batch_of_the_decoder_takes_less_memory(load, device):
    latents = torch.zeros(256, 8, 8, 8, device=device)

    def decoding(*options):
        backend = assemble(load(*options)).backend
        with torch.no_grad():
            return peak(lambda: backend.decode(latents))

    assert decoding("backend.vae_micro_batch=32") < decoding() / 2


@on_gpu
def test_cuda_graphs_give_every_population_its_own_images(load, device):
    """Replays: what the graph recorded for the first members must not come back for others."""
    problems = [
        assemble(load(f"backend.compile='{kind}'", "optimizer.sigma=0.5")) for kind in ("none", "reduce-overhead")
    ]
    found = []
    for problem in problems:
        optimizer = load_optimizer(problem)
        optimizer.prepare()
        batch = problem.draw(0)
        with torch.no_grad():
            found.append(
                [
                    member_images(
                        problem, optimizer.space, optimizer.member_noise(step, slice(0, 4)), Chunk(4, 2), batch, "auto"
                    )
                    for step in range(4)
                ]
            )
    for plain, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, plain, atol=image_tolerance("float32", device), rtol=0)
    assert (found[1][2] - found[1][3]).abs().max() > image_tolerance("float32", device)


@on_gpu
def test_a_run_on_a_stream_of_its_own_draws_the_same(load, device):
    problem = assemble(load())
    expected = drawn(problem)
    with torch.cuda.stream(torch.cuda.Stream()):
        found = drawn(problem)
    assert (found - expected).abs().max() <= image_tolerance("float32", device)
