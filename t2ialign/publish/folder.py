"""The folder that a push sends: the export with its completed card, the spec, the evaluation. Nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tomli_w

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.publish import card
from t2ialign.spec import toml
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

UNCHECKED = "UNCHECKED.txt"


def make(run: RunDir, folder: Path, prompts: bool = False, licence: str | None = None) -> list[Path]:
    """Write the folder anew.

    Args:
        prompts: the prompt files too; they may not be yours to publish.
        licence: the base model's, where its card is not on this machine.

    Returns:
        Its files, relative to it.

    Raises:
        UsageError: the run has no checked export yet, or the folder is something else's.
    """
    export = run.path / "export"
    if not (export / "README.md").exists():
        raise UsageError(f"{run.path} has no export yet; finish the run: t2ialign resume {run.path}")
    if (export / UNCHECKED).exists():
        raise UsageError(f"{export / UNCHECKED}: {(export / UNCHECKED).read_text(encoding='utf-8').strip()}")
    if folder.exists() and places.listed(folder) and not (folder / "README.md").is_file():
        raise UsageError(f"--out {folder}: is not empty and no folder of a push; choose another one")
    with files.new_folder(folder) as new:
        shutil.copytree(export, new, dirs_exist_ok=True)
        if card.split((new / "README.md").read_text(encoding="utf-8"))[0].get("model-index") is None:
            card.complete(run, new)  # an export of a version whose cards had no results
        if licence is not None:
            head, body = card.split((new / "README.md").read_text(encoding="utf-8"))
            head = {key: value for key, value in head.items() if not key.startswith("license")}
            files.write_text(new / "README.md", card.joined({"license": licence, **head}, body))
        tree = card.without_places(toml.read(run.path / "spec.toml"))
        tree["run"].pop("out", None)
        (new / "spec.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
        if (summary := run.summary()) is not None:
            (new / "evaluation.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if prompts:
            shutil.copytree(run.path / "prompts", new / "prompts")
    return [file.relative_to(folder) for file in places.listed(folder, "**/*") if file.is_file()]
