"""A hub of empty files: it gives the files of the listings beside it, as far as a pattern asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

HERE = Path(__file__).parent
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".msgpack", ".h5", ".gguf")


def listing(reference: str) -> dict:
    """What is known of a repository: "files", "complete", and "about" each file."""
    return json.loads((HERE / reference.replace("/", "--") / "files.json").read_text(encoding="utf-8"))


class Hub:
    """Takes the place of ``checkpoints.resolve``; remembers what was fetched of which repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: dict[str, set[str]] = {}

    def __call__(self, reference: str, revision: str | None = None, patterns=("*",)) -> Path:
        root, facts = self.folder / reference.replace("/", "--"), HERE / reference.replace("/", "--")
        names = [name for name in listing(reference)["files"] if not name.endswith("/")]
        for name in filter_repo_objects(names, allow_patterns=list(patterns)):
            self.fetched.setdefault(reference, set()).add(name)
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if (facts / name).is_file():
                file.write_bytes((facts / name).read_bytes())
            elif name.endswith(".safetensors"):
                save_file({"a": torch.zeros(1)}, file)
            elif ".index." in name:
                first, variant = name.split(".index.")[0], name.split(".index.")[1].removesuffix("json").strip(".")
                stem = first.removesuffix(".safetensors").removesuffix(".bin")
                mine = f"{stem}.{variant}-" if variant else f"{stem}-"
                shards = [Path(other).name for other in names if other.startswith(mine)]
                file.write_text(json.dumps({"weight_map": dict(enumerate(shards))}))
            else:
                file.write_text("{}" if name.endswith(".json") else "?")
        root.mkdir(parents=True, exist_ok=True)
        return root

    def weights(self, reference: str) -> set[str]:
        return {name for name in self.fetched.get(reference, ()) if name.endswith(WEIGHTS)}
