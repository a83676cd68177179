"""Fitness of a population's members: in batches, or one at a time, and what is told of a fitness that cannot work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from t2ialign.problem.numerics import keep_freed_memory
from t2ialign.tensors.batching import split
from t2ialign_eggroll.batched import evaluate_members, swapped
from t2ialign_eggroll.noise import Perturbation

log = logging.getLogger(__name__)
FitnessFunction = Callable[[nn.Module], Tensor | float]
#: Members of a generation -> their perturbations by parameter, sign and scale included.
MemberNoise = Callable[[slice], dict[str, Perturbation]]


class Scorer:
    """Scores members of one model with one fitness function; no weight is changed in the end.

    The model is in eval mode meanwhile, and every member meets the same state of torch's global random numbers and the
    same buffers, which are what they were in the end.

    Attributes:
        batched: score many members in one ``torch.vmap``; turned off by the first evaluation where that would score
            another network.
        chunk_size: members in one batch, or members whose noise is in memory at once.
    """

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        parameters: Mapping[str, nn.Parameter],
        batched: bool,
        chunk_size: int,
    ) -> None:
        devices = {name: p.device for name, p in parameters.items()}
        if len(set(devices.values())) > 1:
            shown = ", ".join(f"{name} on {device}" for name, device in devices.items())
            raise ValueError(f"the trained parameters must be on one device: {shown}")
        self.model = model
        self.fitness_fn = fitness_fn
        self.parameters = parameters
        self.batched = batched
        self.chunk_size = chunk_size
        self.device = next(iter(devices.values()))
        if batched and self.device.type == "cpu":
            keep_freed_memory()
        self._seen = self._differed = self._told_constant = self._told_nonfinite = False
        self._best = -torch.inf

    @torch.no_grad()
    def evaluate(self, noise: MemberNoise, count: int, seed: int) -> Tensor:
        """Fitness of every member of a generation, (N,) float32.

        Args:
            noise: of the generation's members.
            count: members N.
            seed: of the random numbers that every member meets.
        """
        scores = torch.empty(count, device=self.device)
        with _eval_mode(self.model), _Buffers(self.model) as self._buffers:
            first, self._seen = not self._seen, True
            if first and self.batched:
                with self._unread_named():
                    self._number(seed)
                self._try_batches(noise, seed)
            for rows in split(count, self.chunk_size):
                drawn = noise(rows)
                if self.batched:
                    scores[rows] = self._batch(drawn, seed)
                else:
                    for member in range(rows.start, rows.stop):
                        scores[member] = self._score(drawn, member - rows.start, seed, first and not member)
        self._tell(scores)
        return scores

    def member(self, noise: Mapping[str, Perturbation], row: int) -> dict[str, Tensor]:
        """The parameters of one of the members that ``noise`` is of."""
        index = torch.tensor([row], device=self.device)
        member = {}
        for name, e in noise.items():
            centre = self.parameters[name]
            member[name] = e.select(index, centre.new_ones(1)).added_to(centre)[0]
        return member

    def centre(self, seed: int) -> float:
        """Fitness of the model as it is."""
        with torch.no_grad(), _eval_mode(self.model), _Buffers(self.model) as self._buffers:
            return self._number(seed)

    def _try_batches(self, noise: MemberNoise, seed: int) -> None:
        """One member at a time where torch cannot run a batch; the fitness function itself has just worked."""
        try:
            self._compare_forms(noise(slice(0, 2)), seed)
        except (RuntimeError, _NoTensor) as error:
            self.batched = False
            log.warning(
                "batched=True cannot be had: torch.vmap does not run the model or the fitness function (%s). Going on"
                " one member at a time.",
                str(error).splitlines()[0],
            )

    def _compare_forms(self, noise: dict[str, Perturbation], seed: int) -> None:
        """Two members as noise of a batch, and as weights of the model: a module that reads a weight instead of calling
        its child would be scored without its noise, and nothing else would show it. One member at a time then."""
        found, wanted = self._batch(noise, seed), self._set(noise, seed)
        eps = max(torch.finfo(p.dtype).eps for p in self.parameters.values())  # weights of 16 bits round the noise too
        tolerance = max(0.01, 32 * eps) * (wanted[1] - wanted[0]).abs() + max(1e-4, 2 * eps) * wanted.abs().max()
        if not bool(wanted.isfinite().all()) or bool(((found - wanted).abs() <= tolerance).all()):
            return
        deaf = []
        for name, one in ((name, {name: e}) for name, e in noise.items()):
            heard, wanted = self._batch(one, seed), self._set(one, seed)
            if (heard[1] - heard[0]).abs() < 0.5 * (wanted[1] - wanted[0]).abs():
                deaf.append(name)
        self.batched = False
        log.warning(
            "batched=True scores another network than the model: the noise of %s does not arrive where the model reads"
            " those weights itself (a fused layer, a tied head, F.linear). Going on one member at a time.",
            ", ".join(deaf) or "some parameters",
        )

    def _set(self, noise: dict[str, Perturbation], seed: int) -> Tensor:
        """Scores of two members whose weights the model has; in a batch all the same, for its random numbers."""
        index, off = torch.arange(2, device=self.device), torch.zeros(2, device=self.device)
        none = {name: e.select(index, off.to(self.parameters[name].dtype)) for name, e in noise.items()}
        scores = []
        for row in range(2):
            with swapped({name: self.parameters[name] for name in noise}, self.member(noise, row)):
                scores.append(self._batch(none, seed)[row])
        return torch.stack(scores)

    def _batch(self, noise: dict[str, Perturbation], seed: int) -> Tensor:
        with _common_random_numbers(seed, self.device), self._explained():
            try:
                return evaluate_members(self.model, self._scalar, noise).float()
            finally:
                self._buffers.restore()

    def _score(self, noise: dict[str, Perturbation], row: int, seed: int, watched: bool = False) -> float:
        """The black-box way: set one member's weights, ask, put the centre back."""
        with swapped(self.parameters, self.member(noise, row)), self._unread_named() if watched else nullcontext():
            return self._number(seed)

    def _number(self, seed: int) -> float:
        with _common_random_numbers(seed, self.device), self._explained():
            try:
                score = self.fitness_fn(self.model)
            finally:
                self._buffers.restore()
            if isinstance(score, Tensor) and (score.numel() != 1 or score.is_complex()):
                kind = "a complex number" if score.is_complex() else f"a tensor of shape {tuple(score.shape)}"
                raise ValueError(f"the fitness function must return one number, not {kind}")
            try:
                return float(score)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"the fitness function must return one number, not {type(score).__name__} {score!r:.80}"
                ) from error

    def _scalar(self, model: nn.Module) -> Tensor:
        score = self.fitness_fn(model)
        if not isinstance(score, Tensor):
            raise _NoTensor(f"it returns {type(score).__name__} and no tensor")
        return score.reshape(()).to(self.device)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """torch's errors about devices name two of them and not which is whose."""
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            if "device" in str(error).lower() or "meta" in str(error):
                raise ValueError(
                    f"the fitness function mixes devices: the trained parameters are on {self.device}, so move its"
                    f" inputs there and return a number or a tensor that can be read ({str(error).splitlines()[0]})"
                ) from error
            raise

    @contextmanager
    def _unread_named(self) -> Iterator[None]:
        """Inside, one call of the fitness function; parameters that no torch operation got are named after it."""
        if any(map(_compiled, self.model.modules())):
            yield  # compiled code reads them where this cannot see
            return
        reads = _Reads(self.parameters.values())
        with reads:
            yield
        unread = [name for name, p in self.parameters.items() if id(p) in reads.unread]
        if unread and len(unread) < len(self.parameters):  # none read: the fitness runs elsewhere, and may well depend
            shown = ", ".join(unread[:8]) + (f" and {len(unread) - 8} more" if len(unread) > 8 else "")
            log.warning("no member's fitness depends on %s: the fitness function never reads it", shown)

    def _tell(self, scores: Tensor) -> None:
        finite = scores[scores.isfinite()]
        if len(finite) < len(scores) and not self._told_nonfinite:
            self._told_nonfinite = True
            log.warning(
                "%d of %d members have no finite fitness (NaN or infinite): they are left out of the update",
                len(scores) - len(finite),
                len(scores),
            )
        self._tell_constant(finite)

    def _tell_constant(self, finite: Tensor) -> None:
        """Of a generation in which nothing tells the members apart; where others did, it may be the end of the way."""
        if len(finite) < 2:
            return
        best, differed = finite.max().item(), self._differed
        before, self._best = self._best, max(self._best, best)
        if bool((finite != finite[0]).any()):
            self._differed = True
            return
        if self._told_constant:
            return
        self._told_constant = True
        if not differed:
            reason = (
                ": it does not depend on the trained parameters (random numbers are the same for all members), or sigma"
                " is too small to show"
            )
        elif best >= before:
            reason = (
                ", and none has had a higher one: if that is the most that the fitness gives, training is done; such a"
                " generation gives no direction"
            )
        else:
            reason = (
                f", where earlier ones differed and reached {before:g}: they may have left the region in which the"
                " fitness tells them apart; take a smaller step or sigma"
            )
        log.warning("all members have the same fitness, %g%s", best, reason)


class _NoTensor(Exception):
    """A fitness function gives a number that torch knows nothing about."""


class _Buffers:
    """The buffers of a model as they are now, whatever its forward does to them: each member begins with the same."""

    def __init__(self, model: nn.Module) -> None:
        self.kept = [
            (module, name, buffer, buffer._version, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()  # those have no versions, and do not change
        ]

    def __enter__(self) -> _Buffers:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put other tensors back that the forward assigned, and the values that it changed in place."""
        for number, (module, name, buffer, version, value) in enumerate(self.kept):
            module._buffers[name] = buffer
            if buffer._version != version:
                buffer.copy_(value)
                self.kept[number] = (module, name, buffer, buffer._version, value)


def _compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or (
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
    )


class _Reads(TorchFunctionMode):
    """Notes which of some parameters are an argument of a torch operation."""

    def __init__(self, parameters: Any) -> None:
        super().__init__()
        self.unread = {id(p) for p in parameters}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs)):
            self.unread.discard(id(leaf))
        return func(*args, **(kwargs or {}))


@contextmanager
def _common_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Every member of a generation sees the same global random numbers; the caller's state comes back."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
