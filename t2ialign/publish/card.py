"""The model card of an export, completed once the run is evaluated: results, base, licence, pictures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from t2ialign.evaluation import comparison
from t2ialign.spec import checkpoints, toml
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

LORA = "pytorch_lora_weights.safetensors"
PICTURES = 4
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
#: What YAML 1.1 and 1.2 read differently, or as no text.
_NUMBERLIKE = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|0[xo][\da-fA-F]+")


class _Quoting(yaml.SafeDumper):
    """Texts that look like numbers are quoted: YAML 1.2 reads 1e3 as one, and this library leaves it bare."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "'" if _NUMBERLIKE.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Quoting.add_representer(str, _text)


def split(text: str) -> tuple[dict[str, Any], str]:
    """The YAML head of a card and what follows."""
    found = _HEAD.match(text)
    head = yaml.safe_load(found[1]) if found else None
    return (head if isinstance(head, dict) else {}), text[found.end() :] if found else text


def joined(head: dict[str, Any], body: str) -> str:
    dumped = yaml.dump(head, Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{dumped}---\n\n{body.lstrip()}"


def complete(run: RunDir, folder: Path | None = None) -> None:
    """Put the last evaluation into the card of an export, with some tuned images beside it; again after another one.

    Args:
        folder: of the export; default: the run's.
    """
    folder = folder or run.path / "export"
    card, summary = folder / "README.md", run.summary()
    if summary is None or not card.exists():
        return
    head, body = split(card.read_text(encoding="utf-8"))
    spec = toml.read(run.path / "spec.toml")
    is_lora = (folder / LORA).exists()
    pictures = list(_pictures(run, folder)) if is_lora else []
    name = run.path.resolve().name
    new = {**_about(head, spec, is_lora), "widget": pictures, "model-index": _index(name, summary, spec)}
    head = {key: value for key, value in new.items() if value}
    files.write_text(card, joined(head, _with_results(body, summary, pictures)))


def _about(head: dict[str, Any], spec: dict[str, Any], is_lora: bool) -> dict[str, Any]:
    """The head without results. The licence is the base's: as its card on disk says, else a link to it."""
    base = head.get("base_model")
    about = {key: value for key, value in head.items() if key not in ("widget", "model-index", "tags")}
    about["pipeline_tag"] = "text-to-image"
    if base:
        about["base_model_relation"] = "adapter"
    if "license" not in about:
        about |= licence(spec["backend"]["checkpoint"])
    library = about.get("library_name", "t2ialign")
    tags = ["text-to-image", library, *(["lora"] if is_lora else []), "t2ialign", *head.get("tags", [])]
    return {**about, "tags": list(dict.fromkeys(tags))}


def licence(checkpoint: str) -> dict[str, Any]:
    """``license`` of the base model, and where it stands if its card is not on this machine."""
    folder = checkpoints.on_disk(checkpoint)
    card = folder / "README.md" if folder is not None else None
    if card is not None and card.is_file():
        head, _ = split(card.read_text(encoding="utf-8"))
        if found := {key: head[key] for key in ("license", "license_name", "license_link") if head.get(key)}:
            return found
    if not checkpoints.looks_like_hub_id(checkpoint) or (folder is not None and not _from_hub(folder)):
        return {}
    link = f"https://huggingface.co/{checkpoint}"
    return {"license": "other", "license_name": "of-the-base-model", "license_link": link}


def _from_hub(folder: Path) -> bool:
    return folder.parent.name == "snapshots"


def _pictures(run: RunDir, folder: Path) -> Iterator[dict[str, Any]]:
    """Some tuned images beside the card, as entries of its gallery: spread over the evaluation, one a prompt."""
    lines = files.read_json_lines(run.path / "evaluation" / "scores.jsonl")
    first = {line["prompt"]: row for row, line in reversed(list(enumerate(lines)))}
    rows = sorted(row for row in first.values() if (run.path / "evaluation" / "tuned" / f"{row:05d}.png").exists())
    count = min(PICTURES, len(rows))
    chosen = [rows[place * len(rows) // count] for place in range(count)]
    shutil.rmtree(folder / "images", ignore_errors=True)
    for number, row in enumerate(chosen):
        (folder / "images").mkdir(exist_ok=True)
        shutil.copyfile(run.path / "evaluation" / "tuned" / f"{row:05d}.png", folder / "images" / f"{number:04d}.png")
        yield {"text": lines[row]["prompt"] or " ", "output": {"url": f"images/{number:04d}.png"}}


def _index(name: str, summary: dict[str, Any], spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The hub's ``model-index``: one result, base and tuned apart by the metrics' names."""
    held = "held-out" if spec.get("evaluation", {}).get("prompts") else "training"
    metrics = [
        {"type": reward, "value": round(mean["mean"], 6), "name": f"{reward}, {variant}"}
        for variant in ("tuned", "base")
        for reward, mean in summary["variants"].get(variant, {}).items()
        if mean["mean"] is not None  # NaN is no JSON
    ]
    if not metrics:
        return []
    task = {"type": "text-to-image", "name": f"Text-to-image, {summary['prompts']} {held} prompts"}
    data = {"type": f"own/{held}-prompts", "name": f"{held.capitalize()} prompts of the run", "split": "test"}
    return [{"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}]


def _with_results(body: str, summary: dict[str, Any], pictures: list[dict[str, Any]]) -> str:
    gallery = "<Gallery />\n\n" if pictures else ""
    text = f"{_BEGIN}\n## Results\n\n{gallery}{comparison.table(summary).strip()}\n{_END}"
    if _BEGIN in body:
        return re.sub(f"{_BEGIN}.*?{_END}", lambda _: text, body, flags=re.DOTALL)
    return f"{body.rstrip()}\n\n{text}\n"


def without_places(value: Any) -> Any:
    """The same data without the places of this machine: of an absolute path it keeps the name."""
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_places(one) for one in value]
    if isinstance(value, str) and (Path(value).is_absolute() or re.match(r"[A-Za-z]:[\\/]|~|\\\\", value)):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return json.loads(json.dumps(value))
