"""The contract of optimizers, on the toy world."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from t2ialign.config import Requirements
from t2ialign.declaration import Declaration
from t2ialign.errors import SpecError, UsageError
from t2ialign.hookspecs import hookimpl
from t2ialign.problem.optimizer import LoraOptimizer, Optimizer, StepResult, load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.run.finish import Unfinished
from t2ialign.spec import parse as specs
from t2ialign.spec.model import Spec
from t2ialign.tensors.state import State
from t2ialign.testing.contract import Contract, check_images, close, no_ambient_draws
from t2ialign.testing.world import installed, write_spec

KIND = "under-test"
Metrics = dict[str, float]


class OptimizerContract(Contract):
    """See ``check_optimizer``; inside ``installed()``, where the optimizer's kind is registered."""

    def __init__(self, name: str, folder: Path, optimizer: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
        """
        Raises:
            UsageError: nothing in the toy world is what the optimizer requires.
        """
        self.name, self.folder, self.optimizer, self.tables = name, folder, dict(optimizer), dict(tables)
        self.steps = 0
        self.world = self._fitting()
        self.steps = min(2, self.spec().optimizer_config.plan(self.spec()).steps // 2)

    def checks(self) -> list[Callable[[], None]]:
        checks = [self.metrics, self.state, self.repeats, self.resumes, self.micro_batch, self.delivers]
        if self._accepts(reward=[{"kind": "toy-redness", "normalise": "zscore-prompt"}]):
            checks.append(self.normalised)
        return [*checks, self.whole_run]

    def spec(self, run: Mapping[str, Any] | None = None, **tables: Any) -> Spec:
        """The optimizer's spec on the toy world, four steps long."""
        common = {"steps": 4, "out": str(self.folder / "runs"), "device": "cpu", **(run or {})}
        prompts = {"file": "prompts.txt", "per_step": 3, "images_per_prompt": 2}
        given = {"prompts": prompts, "optimizer": self.optimizer, **self.world, **self.tables, **tables}
        return specs.load(write_spec(self.folder, run=common, **given))

    def _fitting(self) -> dict[str, Any]:
        """The first of the toy models and samplers, and of the installed samplers, that the optimizer can work on."""
        self.world, refusal = {}, ""
        for self.world in _worlds():
            try:
                self.spec()
            except SpecError as error:
                refusal = refusal or str(error.problems[0])
            else:
                return self.world
        raise UsageError(f"the toy world is not what {self.name} requires: {refusal}")

    def _accepts(self, **tables: Any) -> bool:
        try:
            self.spec(**tables)
        except SpecError:
            return False
        return True

    def go(self, spec: Spec, first: int, count: int, state: State | None = None) -> tuple[list[Metrics], Optimizer]:
        """Some steps in a fresh process's place: nothing but the state is handed on."""
        problem = assemble(spec, report=lambda line: None)
        optimizer = load_optimizer(problem)
        if state is not None:
            optimizer.load_state(state)
        metrics = []
        for index in range(first, first + count):
            with no_ambient_draws(f"{self.name}.step"):
                result = optimizer.step(index)
            optimizer.after_step(index)
            assert isinstance(result, StepResult), (
                f"{self.name}.step returns a {type(result).__name__}; it returns a StepResult"
            )
            if result.images is not None:
                size = problem.backend.info.image_size
                check_images(result.images, f"{self.name}'s StepResult.images", (len(result.images), 3, *size))
            metrics.append(dict(result.metrics))
        return metrics, optimizer

    def metrics(self) -> None:
        """Every step reports numbers by name."""
        found, _ = self.go(self.spec(), 0, 2 * self.steps)
        for line in found:
            assert line, f"{self.name}.step reports no metrics; it reports 'reward/<name>' at least"
            for key, value in line.items():
                number = isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.ndim == 0)
                assert isinstance(key, str) and number and not math.isinf(value), (  # noqa: PT018
                    f"{self.name}.step reports {key!r}: {value!r}; a metric is a name and a number"
                )

    def state(self) -> None:
        """The state survives a checkpoint: tensors and JSON."""
        _, optimizer = self.go(self.spec(), 0, self.steps)
        state = optimizer.state()
        assert isinstance(state, State), f"{self.name}.state returns a {type(state).__name__}; it returns a State"
        self._compare(_stored(state, self.name), state, "a state that a checkpoint changes")

    def repeats(self) -> None:
        """The same spec gives the same steps again."""
        first, one = self.go(self.spec(), 0, self.steps)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            second, other = self.go(self.spec(), 0, self.steps)
        self._compare_lines(second, first, "the same spec gives")
        self._compare(other.state(), one.state(), "another state when the same steps are done again")

    def resumes(self) -> None:
        """A run that is stopped half-way and resumed equals one that was not."""
        k = self.steps
        whole, one = self.go(self.spec(), 0, 2 * k)
        _, stopped = self.go(self.spec(), 0, k)
        rest, other = self.go(self.spec(), k, k, _stored(stopped.state(), self.name))
        self._compare_lines(rest, whole[k:], f"resumed after {k} steps it has")
        self._compare(other.state(), one.state(), "another state after a resume; state() holds all that it needs")

    def micro_batch(self) -> None:
        """The micro-batch changes no result."""
        found, one = self.go(self.spec({"micro_batch": 2}), 0, self.steps)
        expected, other = self.go(self.spec(), 0, self.steps)
        self._compare_lines(found, expected, "in micro-batches of 2 it has", 1e-3)
        self._compare(one.state(), other.state(), "another state in micro-batches of 2", 1e-3)

    def delivers(self) -> None:
        """The steps change what the state holds, and images of what is delivered can be drawn."""
        _, start = self.go(self.spec(), 0, 0)
        before = start.state()
        _, optimizer = self.go(self.spec(), 0, 2 * self.steps)
        after, problem = optimizer.state(), optimizer.problem
        nothing = not after.tensors and not after.values  # a pure search, which delivers what it draws
        assert nothing or _difference(after, before, 0), (
            f"{2 * self.steps} steps of {self.name} changed nothing of its state(); a run must deliver something"
        )
        conditioning = problem.backend.encode(problem.prompts[:2])
        with torch.no_grad():
            images = optimizer.generate(conditioning, [5, 6])
        check_images(images, f"what {self.name}.generate returns", (2, 3, *problem.backend.info.image_size))

    def normalised(self) -> None:
        """Rewards may be standardised within each prompt."""
        reward = [{"kind": "toy-redness", "normalise": "zscore-prompt"}]
        try:
            self.go(self.spec(reward=reward), 0, 1)
        except ValueError as error:
            raise AssertionError(
                f"{self.name} fails with normalise = 'zscore-prompt': {error}; give rewards.combine the batch's"
                " prompt_index"
            ) from error

    def whole_run(self) -> None:
        """A run ends with an export that loads, and an evaluation."""
        try:
            run = runner.start(self.spec({"name": "whole", "checkpoint_every": 1}), Display(quiet=True))
        except Unfinished as error:
            failed = "; ".join(line.strip() for line in str(error).splitlines()[1:])
            raise AssertionError(f"the run of {self.name} is done, but not its end: {failed}") from error
        assert (run.path / "export" / "README.md").exists(), (
            f"{self.name}.export wrote no README.md; it writes what the run delivers, and what that is"
        )
        assert run.summary(), f"the run of {self.name} has no evaluation"

    def _compare_lines(self, found: list[Metrics], expected: list[Metrics], where: str, tolerance: float = 0) -> None:
        for line, other in zip(found, expected, strict=True):
            for key in line.keys() | other.keys():
                a, b = (torch.tensor(float(metrics.get(key, math.nan))) for metrics in (line, other))
                assert close(a, b, tolerance), (
                    f"{self.name}: {where} {key} = {a.item():.6g} and not {b.item():.6g}; step i is a function of the"
                    " spec, the state and i"
                )

    def _compare(self, found: State, expected: State, what: str, tolerance: float = 0) -> None:
        difference = _difference(found, expected, tolerance)
        assert not difference, f"{self.name} has {what}: {difference}"


def _difference(found: State, expected: State, tolerance: float) -> str:
    """Where two states differ; empty where they do not."""
    if not _alike(found.values, expected.values, tolerance):
        return f"values {found.values} and not {expected.values}"
    if odd := found.tensors.keys() ^ expected.tensors.keys():
        return f"only one has '{min(odd)}'"
    differ = (k for k, t in expected.tensors.items() if not close(found.tensors[k].double(), t.double(), tolerance))
    return next((f"'{name}' differs" for name in differ), "")


def _alike(found: Any, expected: Any, tolerance: float) -> bool:
    """JSON values that are equal, numbers up to the tolerance."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_alike(found[k], expected[k], tolerance) for k in expected)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_alike, found, expected, [tolerance] * len(found)))
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    return bool(found == expected)


def _worlds() -> Iterator[dict[str, Any]]:
    from t2ialign.plugins import registry

    others = sorted(kind for kind in registry().parts["sampler"] if not kind.startswith("toy-"))
    samplers = [{"kind": "toy-step"}, {"kind": "toy-steps"}, {"kind": "toy-steps", "fresh": 0.5}]
    for sampler in [*samplers, *({"kind": kind} for kind in others)]:
        for model in ("toy-model", "toy-flow"):
            backend: dict[str, Any] = {"kind": model, "checkpoint": "some/model", "dtype": "float32"}
            backend |= {"lora": {"rank": 2}, "image_size": [4, 6]}  # no optimizer may take images to be square
            yield {"backend": backend, "sampler": sampler}


def _stored(state: State, name: str) -> State:
    """The state as a checkpoint gives it back."""
    try:
        tensors = load(save({key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}))
        values = json.loads(json.dumps(state.values))
    except (TypeError, ValueError, AttributeError) as error:
        raise AssertionError(
            f"{name}.state cannot be written: {error}; tensors are named torch tensors, values are JSON"
        ) from error
    return State(tensors, values)


def optimizer_contract(declared: Declaration, folder: Path, options: Mapping[str, Any]) -> OptimizerContract:
    """The contract of an installed optimizer; inside ``installed(everything=True)``."""
    return OptimizerContract(declared.load().__name__, folder, {"kind": declared.kind, **options}, {})


def check_optimizer(
    optimizer: Optimizer,
    *modules: Any,
    requires: Requirements | None = None,
    provides: set[str] | None = None,
    **tables: Any,
) -> None:
    """Check that an optimizer keeps its contract, in some runs of a few steps on the toy world.

    Args:
        optimizer: ``MyOptimizer(MyOptimizer.Config(...))``; not set up.
        modules: plugins that the spec names further parts of.
        requires: as registered; default: {"backend": {"lora"}} for a ``LoraOptimizer``.
        provides: as registered.
        tables: of the spec, where the toy parts do not fit; see ``write_spec``.

    Raises:
        AssertionError: one sentence on what is wrong, and what the contract says.
        UsageError: nothing in the toy world is what the optimizer requires.
    """
    target = type(optimizer)
    if requires is None:
        requires = {"backend": {"lora"}} if isinstance(optimizer, LoraOptimizer) else {}

    class UnderTest:
        @staticmethod
        @hookimpl
        def t2ialign_optimizers(register: Callable[..., None]) -> None:
            register(
                KIND,
                target,
                config=type(optimizer.config),
                summary="under test",
                provides=provides or set(),
                requires=requires,
            )

    options = optimizer.config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    with tempfile.TemporaryDirectory() as folder, installed(UnderTest, *modules):
        OptimizerContract(target.__name__, Path(folder), {"kind": KIND, **options}, tables).hold()
