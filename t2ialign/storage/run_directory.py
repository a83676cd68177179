"""The run directory: what a run writes, and all that ``resume``, ``eval``, ``export`` and ``report`` read.

torch is imported only where tensors are read and written.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import tomli

from t2ialign import places, plugins
from t2ialign.errors import UsageError
from t2ialign.spec import checkpoints
from t2ialign.spec import parse as specs
from t2ialign.spec import text as spec_text
from t2ialign.spec.machine import check_machine
from t2ialign.spec.model import Spec
from t2ialign.storage import files
from t2ialign.storage.states import Damaged, read_state, write_state
from t2ialign.tensors.state import State

log = logging.getLogger(__name__)

MADE_FROM = "made-from.json"
#: Folder of the LoRA that a run goes on from.
START = "start"
#: What ``change`` is about to write: while this file is there, a change is under way.
CHANGING = "changing.json"


class RunDir:
    """One run's folder. Every file in it is whole at any moment; a killed run leaves nothing half-written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self.timing_file = path / "timing.jsonl"
        self.output = path / "output"

    @classmethod
    def create(cls, spec: Spec) -> RunDir:
        """A new folder below ``run.out``; a taken name gets a number, an old run is never touched.

        The resolved spec, the prompt files and the LoRA that the run goes on from go into it, so that the run can be
        repeated and resumed from there.

        Raises:
            UsageError: the machine has not what the spec asks for; nothing was made.
        """
        check_machine(spec)
        base = places.path(spec.run.out) / spec.name
        path, number = base, 1
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                path = base.with_name(f"{base.name}-{number}")
        run = cls(path)
        try:
            run._fill(spec)
        except BaseException:  # half a run directory is of no use
            shutil.rmtree(path, ignore_errors=True)
            raise
        return run

    def _fill(self, spec: Spec) -> None:
        path = self.path
        for folder in ("samples", "checkpoints", "prompts"):
            (path / folder).mkdir()
        tree = spec_text.to_tree(spec)
        tree["run"]["name"] = path.name
        facts = environment(spec)
        if source := spec.lora_start():
            (path / START).mkdir()
            for file in checkpoints.lora_files(source):
                shutil.copyfile(file, path / START / file.name)
            facts["lora_start"] = {"from": str(source), "content": checkpoints.fingerprint(path, [START])}
            tree["backend"]["lora"]["start"] = f"{START}/{source.name}"
        for table, key, file in spec.prompt_files():
            copy = path / "prompts" / f"{table}.{key}{file.suffix}"
            shutil.copyfile(file, copy)
            tree[table][key] = f"prompts/{copy.name}"
        comment = (
            f"Resolved from {Path(spec.source).name}, defaults filled in.\nContinue this run: t2ialign resume {path}"
        )
        files.write_json(path / "environment.json", facts)
        files.write_text(path / "spec.toml", spec_text.to_toml(tree, comment))
        files.write_json(path / MADE_FROM, self.tree_of(self.spec()))

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run.

        Raises:
            UsageError: the folder is no run directory.
        """
        if not (path / "spec.toml").is_file():
            raise UsageError(f"{path} is no run directory: it has no spec.toml")
        return cls(path)

    def made_from(self) -> dict[str, Any] | None:
        """The spec that the checkpoints were made from; None for runs of versions that did not keep it."""
        file = self.path / MADE_FROM
        return files.read_json(file) if file.is_file() else None

    def change(self, spec: Spec, changes: list[dict[str, Any]]) -> None:
        """Go on with another spec, and record what is other in it; a kill at any moment leaves all of it or nothing."""
        tree, text = self.tree_of(spec), (self.path / "spec.toml").read_text(encoding="utf-8")
        comment = "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
        told = {"spec": spec_text.to_toml(tree, comment), "made from": tree, "changes": self.changes() + changes}
        files.write_json(self.path / CHANGING, told)
        self._finish_change()

    def recover(self) -> None:
        """Finish what a process that is dead now was about to do; take away what it left half-written, and checkpoints
        that are damaged. Only who owns the run directory may call this.

        Raises:
            Damaged: no checkpoint can be read.
        """
        files.clean(self.path)
        self._finish_change()
        if (saved := self.load_checkpoint()) is not None:
            for folder in self._checkpoints():
                if int(folder.name.removeprefix("step-")) > saved[0]:
                    shutil.rmtree(folder)

    def _finish_change(self) -> None:
        file = self.path / CHANGING
        if file.is_file():
            told = files.read_json(file)
            self.record(changes=told["changes"], finished=None)
            files.write_json(self.path / MADE_FROM, told["made from"])
            files.write_text(self.path / "spec.toml", told["spec"])
            file.unlink()

    def changes(self) -> list[dict[str, Any]]:
        """What the command line changed on the way: "after step", "key", "from", "to"."""
        return self._environment().get("changes", [])

    def is_finished(self) -> bool:
        """Whether the run came to its end, all of that end went well, and all that it wrote is still there."""
        folders, step = self._checkpoints(), self._environment().get("finished")
        written = ("export", "evaluation/summary.json", "report.html")
        whole = folders and all((self.path / name).exists() for name in written)
        return bool(whole) and folders[-1].name == f"step-{step or 0:06d}"

    def spec(self, overrides: Sequence[str] = ()) -> Spec:
        """The resolved spec."""
        return specs.load(self.path / "spec.toml", overrides)

    def tree_of(self, spec: Spec) -> dict[str, Any]:
        """This run's spec as nested dicts; what lies in its folder is named from there, so that the folder may move."""
        tree = spec_text.to_tree(spec)
        lora = tree["backend"].get("lora", {})
        start, here = Path(lora.get("start", "")), self.path.resolve()
        if start.is_relative_to(here):
            lora["start"] = start.relative_to(here).as_posix()
        return tree

    def tree(self) -> dict[str, Any]:
        """``spec.toml`` as it is, without the parts that it names.

        Raises:
            ValueError: no TOML.
        """
        return tomli.loads((self.path / "spec.toml").read_text(encoding="utf-8"))

    def revisions(self) -> dict[str, str]:
        """Commits of hub repositories that the run has used, as ``checkpoints.commits`` has them."""
        return self._environment().get("revisions", {})

    def remarks(self) -> list[str]:
        """What of the spec has no effect, as the run said before its first step."""
        return self._environment().get("remarks", [])

    def record(self, **facts: Any) -> None:
        """Keep facts that only the loaded run knows in ``environment.json``."""
        known = self._environment()
        if known | facts != known:
            files.write_json(self.path / "environment.json", known | facts)

    def _environment(self) -> dict[str, Any]:
        file = self.path / "environment.json"
        return files.read_json(file) if file.is_file() else {}

    def log(self, step: int, metrics: dict[str, float], timing: dict[str, float] | None = None) -> None:
        """Append one step. Metrics are functions of the spec alone; clocks and memory go to a file of their own."""
        for file, values in ((self.metrics_file, metrics), (self.timing_file, timing)):
            if values is None:
                continue
            line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, allow_nan=False) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl: step 0, the base's, where an evaluation runs along, and the steps."""
        return files.read_json_lines(self.metrics_file)

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps; a torn last line is left out."""
        return [line for line in self.history() if line["step"]]

    def timing(self) -> list[dict[str, Any]]:
        """Seconds, images/s and peak memory (MB) of the logged steps."""
        return files.read_json_lines(self.timing_file)

    def summary(self) -> dict[str, Any] | None:
        """The last evaluation; None before the first."""
        file = self.path / "evaluation" / "summary.json"
        return files.read_json(file) if file.exists() else None

    def rewind(self, step: int) -> None:
        """Forget the logged steps after ``step``, so that a resumed run writes each step once."""
        for file in (self.metrics_file, self.timing_file):
            kept = [json.dumps(line) + "\n" for line in files.read_json_lines(file) if line["step"] <= step]
            files.write_text(file, "".join(kept))

    def require(self) -> None:
        """
        Raises:
            FileNotFoundError: the run directory was moved or deleted since.
        """
        (self.path / "spec.toml").stat()

    def save_checkpoint(self, step: int, state: State, keep: int) -> None:
        """Write ``checkpoints/step-NNNNNN`` and drop all but the newest ``keep``."""
        self.require()  # a folder of the old name would be half a run
        write_state(self.path / "checkpoints" / f"step-{step:06d}", step, state)
        for old in self._checkpoints()[:-keep]:
            shutil.rmtree(old)

    def load_checkpoint(self, step: int | None = None) -> tuple[int, State] | None:
        """The newest checkpoint that can be read (or that of ``step``) and its step; None when there is none.

        Raises:
            UsageError: the wanted step has no checkpoint.
            Damaged: none of them, or not the wanted one, can be read.
        """
        folders = self._checkpoints()
        if step is not None:
            folders = [folder for folder in folders if folder.name == f"step-{step:06d}"]
            if not folders:
                found = ", ".join(folder.name for folder in self._checkpoints())
                raise UsageError(f"{self.path} has no checkpoint of step {step}; it has {found or 'none'}")
            return read_state(folders[0])
        for folder in reversed(folders):
            try:
                return read_state(folder)
            except Damaged as error:
                log.warning("%s; going back to the one before", error)
        if folders:
            again = f"t2ialign run {self.path / 'spec.toml'}"
            raise Damaged(f"no checkpoint of {self.path} can be read; the run can only begin anew: {again}")
        return None

    def newest_step(self) -> int | None:
        """Of the newest checkpoint."""
        folders = self._checkpoints()
        return int(folders[-1].name.removeprefix("step-")) if folders else None

    def save_best(self, step: int, state: State, value: float) -> None:
        """Write the folder ``best``: the state that is worth keeping so far, and by what value."""
        self.require()
        write_state(self.path / "best", step, state, value=value)

    def best_value(self) -> float | None:
        file = self.path / "best" / "state.json"
        return files.read_json(file)["value"] if file.exists() else None

    def load_best(self) -> tuple[int, State] | None:
        return read_state(self.path / "best") if (self.path / "best").exists() else None

    def _checkpoints(self) -> list[Path]:
        found = (self.path / "checkpoints").glob("step-*")
        return sorted(found, key=lambda folder: (len(folder.name), folder.name))


def environment(spec: Spec) -> dict[str, Any]:
    """Versions, device and plugins of this process."""
    import torch

    from t2ialign.tensors import distributed

    wanted = {"torch", "diffusers", "transformers", "peft", "safetensors", "accelerate", "numpy", "pydantic"}
    versions = {d.name: d.version for d in distributions() if d.name in wanted or d.name.startswith("t2ialign")}
    device = distributed.device(spec.run.device)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "packages": dict(sorted(versions.items())),
        "plugins": {status.name: status.error or status.version for status in plugins.registry().plugins},
    }
