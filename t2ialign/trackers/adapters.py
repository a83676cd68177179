"""accelerate's tracker classes, opened for one run; what they do not have in common is here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from t2ialign.trackers.feed import Final

Options = Mapping[str, Any]


class Adapter:
    """One tracker. Construction opens it, which may take long or fail.

    Args:
        path: the run directory.
        spec: the resolved spec, as nested tables.
        identity: of the tracker's run as it was opened before, so that a resumed run goes on in it; "": a new one.
    """

    kind = ""

    def __init__(self, path: Path, spec: Mapping[str, Any], identity: str = "") -> None:
        self.path, self.run_name, self.folder = path, spec["run"]["name"], path / "trackers"
        self.identity = identity or secrets.token_hex(8)
        options = spec.get("trackers", {}).get(self.kind, {})
        project, further = self.arguments(options, "" if not identity else self.identity)
        known = {name: value for name, value in further.items() if value is not None}
        PartialState(cpu=True)  # accelerate's classes log through it
        self.tracker = LOGGER_TYPE_TO_CLASS[self.kind](project, **known)
        self.tracker.start()
        if not identity:
            self.configure(spec)

    def arguments(self, options: Options, before: str) -> tuple[str, dict[str, Any]]:
        """First argument of the tracker class, and the named ones; None leaves one out.

        Args:
            before: the identity, where the run goes on.
        """
        raise NotImplementedError

    def configure(self, spec: Mapping[str, Any]) -> None:
        self.tracker.store_init_configuration(dict(spec))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.tracker.log(metrics, step=step)

    def image(self, name: str, file: Path, step: int) -> None:
        with Image.open(file) as picture:
            self.tracker.log_images({name: [picture.convert("RGB")]}, step=step)

    def table(self, final: Final) -> None:
        raise NotImplementedError


class TensorBoard(Adapter):
    kind = "tensorboard"

    def arguments(self, options: Options, before: str) -> tuple[str, dict[str, Any]]:
        return self.run_name, {"logging_dir": options.get("folder") or str(self.folder)}

    def configure(self, spec: Mapping[str, Any]) -> None:
        self.tracker.store_init_configuration(flat(spec))

    def image(self, name: str, file: Path, step: int) -> None:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))[None]
        self.tracker.log_images({name: pixels}, step=step, dataformats="NHWC")

    def table(self, final: Final) -> None:
        self.tracker.log({"evaluation": final.markdown}, step=final.step)


class Wandb(Adapter):
    kind = "wandb"

    def arguments(self, options: Options, before: str) -> tuple[str, dict[str, Any]]:
        chosen = {name: options.get(name) for name in ("entity", "group", "tags", "mode")}
        named = {"name": self.run_name, "id": self.identity, "resume": "allow", "dir": str(self.folder)}
        return options.get("project", "t2ialign"), {**chosen, **named}

    def table(self, final: Final) -> None:
        self.tracker.log_table("evaluation", columns=final.columns, data=final.rows, step=final.step)


class Trackio(Adapter):
    """accelerate's class has no images; the configuration goes in with the start, which keeps it free of other keys."""

    kind = "trackio"

    def __init__(self, path: Path, spec: Mapping[str, Any], identity: str = "") -> None:
        self.spec = flat(spec)
        super().__init__(path, spec, identity)

    def arguments(self, options: Options, before: str) -> tuple[str, dict[str, Any]]:
        named = {"name": f"{self.run_name}-{self.identity}", "resume": "allow", "config": self.spec}
        return options.get("project", "t2ialign"), {"space_id": options.get("space_id"), **named}

    def configure(self, spec: Mapping[str, Any]) -> None:
        pass

    def image(self, name: str, file: Path, step: int) -> None:
        import trackio

        self.tracker.log({name: trackio.Image(str(file))}, step=step)

    def table(self, final: Final) -> None:
        import trackio

        self.tracker.log({"evaluation": trackio.Markdown(final.markdown)}, step=final.step)


class Mlflow(Adapter):
    """accelerate's class has no images and no tables; the server makes the identity."""

    kind = "mlflow"

    def __init__(self, path: Path, spec: Mapping[str, Any], identity: str = "") -> None:
        super().__init__(path, spec, identity)
        self.identity = self.tracker.tracker.info.run_id

    def arguments(self, options: Options, before: str) -> tuple[str, dict[str, Any]]:
        import mlflow

        places: dict[str, Any] = {}
        uri = options.get("tracking_uri")
        if not uri and "MLFLOW_TRACKING_URI" not in os.environ:
            uri = f"sqlite:///{self.folder.absolute() / 'mlflow.db'}"
            places["logging_dir"] = (self.folder.absolute() / "mlflow").as_uri()
        if uri:
            mlflow.set_tracking_uri(uri)
        return options.get("experiment", "t2ialign"), {**places, "run_id": before or None, "run_name": self.run_name}

    def configure(self, spec: Mapping[str, Any]) -> None:
        self.tracker.store_init_configuration(flat(spec))

    def image(self, name: str, file: Path, step: int) -> None:
        import mlflow

        with Image.open(file) as picture:
            mlflow.log_image(picture.convert("RGB"), key=name, step=step)

    def table(self, final: Final) -> None:
        import mlflow

        columns = zip(*final.rows, strict=True)
        data = {name: list(column) for name, column in zip(final.columns, columns, strict=True)}
        mlflow.log_dict({"data": data}, "evaluation.json")


class Swanlab(Adapter):
    kind = "swanlab"

    def arguments(self, options: Options, before: str) -> tuple[str, dict[str, Any]]:
        chosen = {name: options.get(name) for name in ("workspace", "mode")}
        named = {"experiment_name": self.run_name, "id": self.identity, "resume": "allow"}
        return options.get("project", "t2ialign"), {**chosen, **named, "logdir": str(self.folder / "swanlab")}

    def table(self, final: Final) -> None:
        import swanlab

        self.tracker.log({"evaluation": swanlab.Text(final.markdown)}, step=final.step)


ADAPTERS = {kind.kind: kind for kind in (TensorBoard, Wandb, Trackio, Mlflow, Swanlab)}


def flat(tree: Any, prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested tables as dotted keys; whatever is no number, truth value or text becomes a text."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None or not tree:
        return {prefix: tree if isinstance(tree, int | float | str) else str(tree)}
    found: dict[str, int | float | str | bool] = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
