"""The run loop: steps, grids, checkpoints, evaluation, export; and how a killed run goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path

import torch

from t2ialign.errors import RewardError, T2IAlignError, UsageError, blaming, culprit
from t2ialign.evaluation.counting import told
from t2ialign.evaluation.drafts import draft_remarks
from t2ialign.evaluation.evaluate import items
from t2ialign.evaluation.image_statistics import image_statistics
from t2ialign.evaluation.schedule import schedule
from t2ialign.problem.checks import batch_independence, first_images, repeatable
from t2ialign.problem.optimizer import Optimizer, StepResult, load_optimizer
from t2ialign.problem.problem import Problem, assemble
from t2ialign.ranks import stops
from t2ialign.ranks.world import PeerFailed
from t2ialign.remarks.collect import all_prompts, remarks
from t2ialign.run import checks
from t2ialign.run.continuing import spec_to_continue
from t2ialign.run.display import Display
from t2ialign.run.failures import Interrupted, Stopped, explained
from t2ialign.run.finish import end_seconds, finish
from t2ialign.run.machine import check_room, peak_memory
from t2ialign.run.tracking import Tracking
from t2ialign.spec import checkpoints
from t2ialign.spec.model import Spec
from t2ialign.storage import images
from t2ialign.storage.ownership import owned
from t2ialign.storage.run_directory import RunDir
from t2ialign.tensors import distributed
from t2ialign.tensors.state import State
from t2ialign.trackers.follow import followed

RESUME = "t2ialign resume"


def start(spec: Spec, display: Display | None = None) -> RunDir:
    """Run a spec from step 0 in a new run directory; a launcher that starts its workers again goes on with its run."""
    world = distributed.join(spec.run.timeout)
    with world.together():
        if begun := world.begin():
            return resume(Path(begun), display)
        with machine_faults(Path(spec.run.out)):
            made = str(RunDir.create(spec).path) if world.is_main else ""
        run = RunDir(Path(world.begin(made)))
        try:
            with machine_faults(run.path, run), owned(run.path) if world.is_main else nullcontext():
                return _go(run, spec, world, display)
        except UsageError:  # something that only the loaded model could tell; a run that never began leaves nothing
            if world.is_main and not run.metrics():
                shutil.rmtree(run.path)
            raise


def resume(path: Path, display: Display | None = None, overrides: Sequence[str] = ()) -> RunDir:
    """Continue a run from its newest checkpoint; the result equals that of a run that was never stopped.

    Args:
        overrides: as ``--set`` gives them; what may change, see ``continuing``.

    Raises:
        UsageError: the spec was edited, a change does not continue the run, or another process is at it.
    """
    run, world = RunDir.open(path), join_of(path, overrides)
    with world.together(), machine_faults(path, run), owned(run.path) if world.is_main else nullcontext():
        if world.is_main:
            run.recover()
            spec_to_continue(run, run.newest_step() or 0, overrides)
        if world.share("finished" if world.is_main and run.is_finished() else ""):
            (display or Display(quiet=not world.is_main)).say(f"{path} is finished; --set run.steps=N goes on from it")
            return run
        return _go(run, run.spec(), world, display)


def join_of(path: Path, overrides: Sequence[str] = ()) -> distributed.World:
    """The ranks that work on a run, with its time-out; what is wrong with its spec is told later, by one of them."""
    try:
        return distributed.join(RunDir(path).spec(overrides).run.timeout)
    except UsageError:
        return distributed.join()


def restore(
    path: Path, step: int | None = None, display: Display | None = None, overrides: Sequence[str] = ()
) -> tuple[RunDir, Problem, Optimizer]:
    """A run's problem and optimizer as they were at a checkpoint, for evaluation and export.

    Args:
        overrides: of the run's spec, as ``--set`` gives them.

    Raises:
        UsageError: the run has no checkpoint (of that step).
    """
    run, world = RunDir.open(path), join_of(path)
    display = display or Display(quiet=not world.is_main)
    saved = run.load_checkpoint(step)
    if saved is None:
        raise UsageError(f"{path} has no checkpoint yet")
    checkpoints.commits.update(run.revisions())
    spec = run.spec(overrides)
    if step is None and spec.run.keep == "best":
        saved = run.load_best() or saved
    problem = assemble(spec, world, display.say, run.output)
    optimizer = load_optimizer(problem)
    optimizer.load_state(saved[1])
    return run, problem, optimizer


@contextmanager
def machine_faults(place: Path, run: RunDir | None = None) -> Iterator[None]:
    """Inside, a fault of this machine (no room, no permission, a mount that is gone) is one message.

    Args:
        place: named where the system names no file.
        run: whose newest checkpoint is kept; None before there is any.

    Raises:
        Stopped: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if culprit(error):
            raise
        what = f"{error.filename or place}: {error.strerror or error}"
        if run is None:
            raise Stopped(f"{what}; nothing was begun") from error
        if not (run.path / "spec.toml").exists():
            moved = "was moved or deleted while the run wrote it; if it is elsewhere now, continue there with"
            raise Stopped(f"the run directory {run.path} {moved}: {RESUME} FOLDER") from error
        kept = f"the checkpoint of step {newest} is intact" if (newest := run.newest_step()) else "no step was kept yet"
        raise Stopped(f"{what}; {kept}; continue with: {RESUME} {run.path}") from error


def _go(run: RunDir, spec: Spec, world: distributed.World, display: Display | None) -> RunDir:
    display = display or Display(quiet=not world.is_main)
    log = display.kept_in(run.path / "log.txt") if world.is_main else nullcontext()
    try:
        with log, stops.watched(patient=world.size > 1), world.together():
            return _loaded(run, spec, world, display)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; continue with: t2ialign resume {run.path}") from None
    except PeerFailed as error:
        if error.exit_code == PeerFailed.exit_code and RESUME not in str(error):
            error.args = (f"{error}\ncontinue with: {RESUME} {run.path}",)
        raise


def _loaded(run: RunDir, spec: Spec, world: distributed.World, display: Display) -> RunDir:
    def say(text: str) -> None:
        stop_if_asked(world, run)
        display.say(text)

    display.say(f"run directory: {run.path}")
    checkpoints.commits.update(run.revisions())
    early = _remark(spec, display)
    with explained(run.path, "while loading"), display.encoding(), display.downloading():
        problem = assemble(spec, world, say, run.output)
        optimizer = load_optimizer(problem)
    if world.is_main:
        found = _remark(spec, display, early)
        run.record(revisions=dict(checkpoints.commits), remarks=list(dict.fromkeys([*run.remarks(), *found])))
    newest = world.share(str(run.newest_step() or "") if world.is_main else "")
    first = 0
    if saved := run.load_checkpoint(int(newest)) if newest else None:
        first, state = saved
        with explained(run.path, "while loading"), blaming(optimizer.label):
            optimizer.load_state(state)
        display.say(f"resuming after step {first}")
    if world.is_main:
        run.rewind(first if saved else -1)
    trackers = spec.run.trackers if world.is_main else []
    stop_if_asked(world, run)
    try:
        with followed(run.path, trackers, spec.trackers, display.say), problem.backend.compiling(False):
            _Loop(run, problem, optimizer, display).run(first)
    except RewardError as error:
        if error.image is not None:  # only the rank that drew it has it
            images.save_png(error.image, run.path / "nonfinite.png")
        raise
    return run


def stop_if_asked(world: distributed.World, run: RunDir, done: int | None = None) -> None:
    """Where all ranks can leave their work.

    Raises:
        Interrupted: one of them was asked to stop.
    """
    if asked := world.meet():
        after = "" if done is None else f" after step {done}"
        who = f" ({asked})" if world.size > 1 else ""
        raise Interrupted(f"stopped{after}{who}; continue with: {RESUME} {run.path}")


def _remark(spec: Spec, display: Display, told: Sequence[str] = ()) -> list[str]:
    """Say what was not told yet: what only a checkpoint's files tell is known once they are here."""
    found = remarks(spec, all_prompts(spec))
    for remark in found:
        if remark not in told:
            display.say(f"note: {remark}")
    return found


class _Loop:
    """One process's pass over the steps."""

    def __init__(self, run: RunDir, problem: Problem, optimizer: Optimizer, display: Display) -> None:
        self.run_dir, self.problem, self.optimizer, self.display = run, problem, optimizer, display
        self.spec, self.main = problem.spec, problem.world.is_main
        self.plan = problem.spec.optimizer_config.plan(problem.spec)
        self.schedule = schedule(self.spec, self.plan)
        self.tracking = Tracking(run, problem, optimizer, self.schedule) if self.schedule else None
        self.drifted = False
        self.image_seconds = 0.0  # what an image that the run delivers took, the last time that some were drawn
        self.tracked = ""

    def run(self, first: int) -> None:
        if first == 0:
            with explained(self.run_dir.path, "before step 1"), blaming(self.optimizer.label):
                checks.state(self.optimizer)
        if self.main:
            check_room(self.run_dir, self.problem, self.optimizer)
        if first == 0:
            with explained(self.run_dir.path, "before step 1"):
                self._grid(0)
                self._note(draft_remarks(self.problem))
        self._track(first)
        with stops.process.waiting(), self.display.bar("step", self.plan.steps, first) as bar:
            for index in range(self.plan.steps if self.drifted else first, self.plan.steps):
                started = time.monotonic()
                with self._kept(index):
                    with explained(self.run_dir.path, f"at step {index + 1}"), blaming(self.optimizer.label):
                        backend = self.problem.backend
                        with backend.compiling(), backend.drafting(), told(self.problem, bar.unit):
                            result = checks.result(self.optimizer, self.optimizer.step(index), index)
                        self.optimizer.after_step(index)
                    seconds = time.monotonic() - started
                    with explained(self.run_dir.path, f"after step {index + 1}"), self._rescued(index + 1):
                        self._after(index + 1, result, seconds)
                speed = f"{self.plan.images_per_step / seconds:.0f} images/s"
                rewards = _training(result.metrics, self.problem.rewards.names)
                peak = peak_memory(self.problem.device)
                notes = [self.tracked, rewards, speed, "" if peak is None else f"{peak:.0f} MB"]
                bar.rest = end_seconds(self.problem, self.image_seconds or seconds / self.plan.images_per_step)
                bar.advance(note="  ".join(filter(None, notes)))
                if self.drifted:
                    break
                if self.problem.world.meet():
                    if self.run_dir.newest_step() != index + 1:
                        self._checkpoint(index + 1)
                    stop_if_asked(self.problem.world, self.run_dir, index + 1)
        self._finish()

    @contextmanager
    def _kept(self, done: int) -> Iterator[None]:
        """A step after ``done`` ones that loses none of them: where a reward's process or another rank stays away, the
        state before the step, which may have begun to change, is the run's checkpoint."""
        rewards = self.problem.rewards
        elsewhere = any(part.reward.elsewhere for part in [*rewards.rewards, *rewards.comparisons])
        if not elsewhere and self.problem.world.size == 1:
            yield
            return
        state = self.optimizer.state()
        before = State(
            {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}, deepcopy(state.values)
        )
        try:
            yield
        except Exception as error:
            newest = self.run_dir.newest_step() or 0  # it may have come as far as the step's own checkpoint
            if done > newest and self.main:
                self.run_dir.save_checkpoint(done, before, self.spec.run.keep_checkpoints)
            if isinstance(error, T2IAlignError) and RESUME not in str(error):
                kept = max(done, newest)
                error.args = (f"{error}\nstopped after step {kept}; continue with: {RESUME} {self.run_dir.path}",)
            raise

    @contextmanager
    def _rescued(self, done: int) -> Iterator[None]:
        """Where a disk takes no more, a step whose numbers are written is kept if there is room for it."""
        try:
            yield
        except OSError:
            with suppress(OSError):
                if self.main and done in [line["step"] for line in self.run_dir.metrics()]:
                    self.run_dir.save_checkpoint(done, self.optimizer.state(), self.spec.run.keep_checkpoints)
            raise

    def _after(self, done: int, result: StepResult, seconds: float) -> None:
        """Bookkeeping after ``done`` steps. Metrics are written before the checkpoint that covers them."""
        last = done == self.plan.steps
        metrics = dict(result.metrics)
        if self.schedule and self.schedule.due(done):
            metrics |= self._measured(done)
            last = last or self.drifted
        if last or (self.spec.samples.every and done % self.spec.samples.every == 0):
            self._grid(done)
        if self.main:
            timing = {
                "seconds": seconds,
                "images_per_second": self.plan.images_per_step / seconds,
            }
            if (peak := peak_memory(self.problem.device)) is not None:
                timing["peak_memory_mb"] = peak
            self.run_dir.log(done, metrics, timing)
        if last or (self.spec.run.checkpoint_every and done % self.spec.run.checkpoint_every == 0):
            self._checkpoint(done)

    def _checkpoint(self, done: int) -> None:
        if self.main:
            self.run_dir.record(revisions=dict(checkpoints.commits))  # some load with the first image
            with blaming(self.optimizer.label):
                state = self.optimizer.state()
            self.run_dir.save_checkpoint(done, state, self.spec.run.keep_checkpoints)
        self.problem.world.meet()

    def _track(self, first: int) -> None:
        """Begin the curves of evaluations along the run, or go on with them; a run that drift ended stays ended."""
        if self.schedule is None or self.tracking is None:
            return
        if first == 0:
            self.display.say(f"evaluations along the run: {self.schedule.words(self.plan)}")
            with explained(self.run_dir.path, "before step 1"), blaming(self.optimizer.label):
                measured = self.tracking.start()
            self.tracked = measured.note
            if self.main:
                self.run_dir.log(0, measured.metrics)
        elif self.spec.run.stop_on_drift:
            past = any(line.get("evaluation/drift") for line in self.run_dir.metrics() if line["step"] <= first)
            self.drifted = bool(self.problem.world.share("yes" if past and self.main else ""))

    def _measured(self, done: int) -> dict[str, float]:
        """Metrics of an evaluation along the run; says what drifts."""
        assert self.tracking is not None
        started = time.monotonic()
        with blaming(self.optimizer.label):
            measured = self.tracking.measure(done)
        self.image_seconds = (time.monotonic() - started) / len(self.tracking.wanted.prompts)
        self.tracked = measured.note
        if measured.drift:
            self.display.say(f"drift after step {done}, against the base: {', '.join(measured.drift)}")
            if self.spec.run.stop_on_drift:
                self.drifted = True
                self.display.say(f"run.stop_on_drift ends the run after step {done}")
        return measured.metrics

    @torch.no_grad()
    def _grid(self, done: int) -> None:
        """Some of the evaluated images, as the run delivers them after ``done`` steps."""
        wanted, count = items(self.problem), len(self.problem.evaluation_prompts)
        spread = torch.linspace(0, count - 1, min(self.spec.samples.count, count)).long()
        rows = (spread * self.spec.evaluation.images_per_prompt).tolist()
        prompts, seeds = [wanted.prompts[row] for row in rows], [wanted.seeds[row] for row in rows]
        started = time.monotonic()
        with blaming(self.optimizer.label):
            pictures = self.problem.dealt(self.optimizer.generate, self.problem.encode(prompts), seeds)
        self.image_seconds = (time.monotonic() - started) / len(seeds)
        if not self.main:
            return
        if done == 0:
            first_images(self.problem.backend, pictures)
            batch_independence(self.problem.rewards, pictures[:2], prompts[:2])
            self._note(repeatable(self.problem.rewards, self.spec.rewards, pictures, prompts))
        looks = {name: round(values.mean().item(), 6) for name, values in image_statistics(pictures).items()}
        texts = {"step": str(done), "prompts": "\n".join(prompts)}
        texts["statistics"] = json.dumps({name: value for name, value in looks.items() if value == value})
        path = self.run_dir.path / "samples" / f"step-{done:06d}.png"
        images.save_png(images.grid([pictures]), path, texts)

    def _note(self, lines: Sequence[str]) -> None:
        """Say something of the whole run, and keep it."""
        for words in lines:
            self.display.say(f"note: {words}")
        if self.main and lines:
            self.run_dir.record(remarks=[*self.run_dir.remarks(), *lines])

    def _finish(self) -> None:
        """Done again from scratch if a kill fell into it."""
        world = self.problem.world
        stop_if_asked(world, self.run_dir)
        if self.spec.run.keep == "best" and (best := self.run_dir.load_best()):
            self.display.say(f"going back to step {best[0]}, the best by a held-out reward")
            self.optimizer.load_state(best[1])
        finish(self.run_dir, self.problem, self.optimizer, self.display, lambda: stop_if_asked(world, self.run_dir))


def _training(metrics: Mapping[str, float], names: list[str]) -> str:
    """The step's own rewards, over other prompts at every step: no trend is read from them."""
    found = [f"{name} {metrics[f'reward/{name}']:.4g}" for name in names if f"reward/{name}" in metrics]
    return "training: " + "  ".join(found) if found else ""
