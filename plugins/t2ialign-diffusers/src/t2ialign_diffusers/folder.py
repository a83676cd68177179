"""Checks of a checkpoint folder in the diffusers layout, before any weight is loaded. No torch."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2ialign import checkpoints, places
from t2ialign.errors import UsageError
from t2ialign.foreign import model_settings, read_object, shown, tensor_header
from t2ialign.spec.checkpoints import tensor_shapes

if TYPE_CHECKING:
    from torch import nn

#: Where the classes of components come from.
_LIBRARIES = ("diffusers", "transformers")
#: What is fetched of a component besides its weights.
_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
#: In order of preference: a component that has safetensors is never asked for its pickles.
_FORMATS = ("safetensors", "bin")
#: Names of weights: in one file or in shards; the variant stands before or behind the number of the shard.
_WEIGHTS = re.compile(r"[\w-]*?model(-\d+-of-\d+)?(\.(?P<variant>[\w-]+?)(-\d+-of-\d+)?)?\.(?P<form>safetensors|bin)")


def open_checkpoint(
    reference: str,
    revision: str | None,
    pipelines: Collection[str],
    components: Sequence[str],
    weightless: Collection[str] = (),
    variant: str | None = None,
) -> Path:
    """The local folder of a diffusers checkpoint that one of ``pipelines`` can load.

    Args:
        reference: hub id, folder, or ``pkg:<package>/<path>``; only the named components are downloaded.
        revision: hub revision.
        pipelines: accepted classes in ``model_index.json``.
        components: sub-folders that must be there, each with complete weights if it holds a model. Pickles, which
            diffusers and transformers read as plain tensors, are taken from components that have no safetensors.
        weightless: components of which only the configuration is used.
        variant: of the weights; components without such a variant give their plain weights, as in diffusers.

    Raises:
        UsageError: anything of that is missing, of another kind, or cut off.
    """
    settings = ["model_index.json", *(f"{part}/{file}" for part in components for file in _SETTINGS)]
    heavy = [part for part in components if part not in weightless]
    folder = fetch(reference, revision, settings, heavy, variant)
    where = f"checkpoint '{reference}'"
    _check_pipeline(folder, where, pipelines, components)
    for part in components:
        if not any((folder / part).glob("*.json")):
            raise UsageError(f"{where} has no component '{part}'")
    models = [part for part in heavy if (folder / part / "config.json").is_file()]
    for part in models:
        check_weights(folder / part, where, variant)
    if variant and not any(variant in weights_by_variant(folder / part) for part in models):
        raise UsageError(f"{where} has no weights of the variant '{variant}' (backend.variant)")
    return folder


def open_outline(
    reference: str, revision: str | None, pipelines: Collection[str], components: Sequence[str], text: Sequence[str]
) -> Path:
    """As ``open_checkpoint``, of a checkpoint of which only the settings are read; those of ``text`` may be missing."""
    patterns = ["model_index.json", *(f"{part}/{file}" for part in (*components, *text) for file in _SETTINGS)]
    folder = checkpoints.resolve(reference, revision, patterns)
    _check_pipeline(folder, f"checkpoint '{reference}'", pipelines, [*components, *text])
    return folder


def _check_pipeline(folder: Path, where: str, pipelines: Collection[str], components: Sequence[str]) -> None:
    """The pipeline is one of ours, its components are the libraries' own, and each could be built."""
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"{where} is no diffusers checkpoint: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name", "")
    if found not in pipelines:
        kind = shown(found, 100) or "nameless pipeline"
        raise UsageError(f"{where} is a {kind}; this backend loads {' or '.join(pipelines)}")
    for part in components:
        library, name = index[part] if isinstance(index.get(part), list) and len(index[part]) == 2 else (None, None)
        if library not in (None, *_LIBRARIES):
            words = f"'{part}' is a {shown(name, 60)} of '{shown(library, 60)}'"
            raise UsageError(f"{where}: {words}; code that comes with a checkpoint is never run")
        if (file := folder / part / "config.json").is_file():
            try:
                model_settings(file)
            except (OSError, ValueError) as error:
                raise UsageError(f"{where}: {part}/config.json {error}") from error


def fetch(
    reference: str, revision: str | None, settings: Sequence[str], parts: Sequence[str], variant: str | None = None
) -> Path:
    """The local folder with the settings, and of each part the one set of weights that will be read.

    Parts without weights of the variant give plain ones, and parts without any safetensors plain pickles.
    """
    folder = checkpoints.resolve(reference, revision, [*settings, *_weight_patterns(parts, variant, "safetensors")])
    models = [part for part in parts if (folder / part / "config.json").is_file()]
    if plain := [part for part in models if variant and variant not in weights_by_variant(folder / part)]:
        checkpoints.resolve(reference, revision, _weight_patterns(plain, None, "safetensors"))
    if pickled := [part for part in models if not weights_by_variant(folder / part)]:
        checkpoints.resolve(reference, revision, _weight_patterns(pickled, None, "bin"))
    return folder


def _weight_patterns(parts: Collection[str], variant: str | None, form: str) -> list[str]:
    ends = [f"model.{variant}", f"model.{variant}-*-of-*", f"model-*-of-*.{variant}"] if variant else []
    return [f"{part}/*{end}.{form}" for part in parts for end in ends or ["model", "model-*-of-*"]]


def weights_by_variant(folder: Path) -> dict[str | None, list[Path]]:
    """Files of a component's weights, all of its preferred format; the plain ones are under None."""
    matches = [match for file in sorted(folder.glob("*")) if (match := _WEIGHTS.fullmatch(file.name))]
    for form in _FORMATS:
        found: dict[str | None, list[Path]] = {}
        for match in matches:
            if match["form"] == form:
                found.setdefault(match["variant"], []).append(folder / match.string)
        if found:
            return found
    return {}


def check_weights(folder: Path, where: str, variant: str | None = None) -> None:
    """Complain unless ``folder`` has weights, plain or of the variant, with every shard in full length.

    Raises:
        UsageError: no weights, a missing shard, or a truncated file.
    """
    found = weights_by_variant(folder)
    if None not in found and variant not in found:
        other = f"; it has the variant {' and '.join(map(repr, found))}, see backend.variant" if found else ""
        raise UsageError(f"{where}: '{folder.name}' has no .safetensors or .bin weights{other}")
    chosen = variant if variant in found else None
    names = {file.name for file in found[chosen]}
    form = found[chosen][0].suffix
    for index in places.listed(folder, f"*{form}.index{f'.{chosen}' if chosen else ''}.json"):
        if absent := sorted(set(read_json(index)["weight_map"].values()) - names):
            raise UsageError(f"{where}: '{folder.name}' lacks the shard {absent[0]}")
    for file in found[chosen]:
        if not is_complete(file):
            raise UsageError(f"{where}: {folder.name}/{file.name} is truncated or damaged; fetch it again")


def check_complete(network: nn.Module, folder: Path, where: str) -> None:
    """Did every tensor of a network that was just loaded come from its files? The library fills others by chance.

    Args:
        folder: of the weights; passed over where it has no safetensors.

    Raises:
        UsageError: the files lack tensors that the configuration asks for; names them.
    """
    found = tensor_shapes(folder)
    missing = sorted(network.state_dict().keys() - found.keys()) if found else []
    if missing:
        raise UsageError(
            f"{where}: the weights in {folder} lack {len(missing)} tensors that {folder.name}/config.json asks for:"
            f" {', '.join(missing[:3])}{', ...' if missing[3:] else ''}; the two are of different models"
        )


def is_complete(file: Path) -> bool:
    """Whether a file is as long as its beginning says: the header of a safetensors file, the archive of a pickle."""
    if file.suffix == ".bin":
        with file.open("rb") as stream:  # what is no archive is a pickle of old, which says nothing
            return stream.read(2) != b"PK" or zipfile.is_zipfile(file)
    try:
        tensor_header(file)
    except (OSError, ValueError):
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: the file is none.
    """
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} {error}") from error
