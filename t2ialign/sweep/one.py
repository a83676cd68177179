"""One run of a sweep. torch comes only when it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from t2ialign.errors import T2IAlignError
from t2ialign.run.display import Display
from t2ialign.run.failures import Interrupted
from t2ialign.storage.run_directory import RunDir
from t2ialign.sweep.spec import Point, Sweep, overrides


def result_of(sweep: Sweep, path: Path, point: Point, display: Display) -> dict[str, Any]:
    """The finished run's score on the held-out prompts; what a kill left of a run is gone on with."""
    from t2ialign.run import runner
    from t2ialign.spec import parse as specs

    result: dict[str, Any] = {"run": path.name, "point": point, "score": None}
    try:
        if (path / "spec.toml").exists() and RunDir(path).newest_step() is not None:
            run = runner.resume(path, display)
        else:
            shutil.rmtree(path, ignore_errors=True)  # killed before its first checkpoint
            place = [f"run.name={json.dumps(path.name)}", f"run.out={json.dumps(str(path.parent.resolve()))}"]
            run = runner.start(specs.load(sweep.spec_file, [*overrides(point), *place]), display)
    except Interrupted as error:
        raise Interrupted(f"stopped; the same command goes on with {path.name}") from error
    except T2IAlignError as error:
        display.say(f"{path.name} failed: {error}")
        return {**result, "error": str(error).splitlines()[0]}
    summary = run.summary() or {}
    pair = summary["paired"]["tuned"][sweep.reward]
    return {**result, "score": pair["mean"], "difference": pair["difference"], "se": pair["se"]}
