"""Weights into transformers modules, strictly: no key may be missing, and none left over."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging

from t2ialign import checkpoints
from t2ialign.errors import UsageError

#: In order of preference; a repository that has safetensors is never asked for its pickles.
_HUB_PATTERNS = (("*.json", "*.txt", "model*.safetensors"), ("pytorch_model*.bin",))


def model_folder(reference: str, revision: str | None = None) -> Path:
    """Local folder of a model in the transformers format, downloaded on first use.

    Raises:
        UsageError: it is no folder with weights in that format.
    """
    for patterns in _HUB_PATTERNS:
        folder = checkpoints.resolve(reference, revision, patterns)
        if any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
            break
    else:
        raise UsageError(f"'{reference}' has no model.safetensors: is it a model in the transformers format?")
    return folder


def find_file(reference: str, revision: str | None, names: Sequence[str]) -> Path:
    """One weights file, downloaded on first use.

    Args:
        reference: the file itself, or a folder or hub id that has one of ``names`` (the first found is taken).

    Raises:
        UsageError: there is none.
    """
    place = checkpoints.resolve(reference, revision, names)
    if place.is_file():
        return place
    for name in names:
        if (place / name).is_file():
            return place / name
    raise UsageError(f"'{reference}' has none of the files {', '.join(names)}")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, or of a pickle (.pt, .pth) read with ``weights_only=True``.

    Raises:
        UsageError: the pickle holds other things than tensors, or the file is damaged.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise UsageError(f"{file} is no file of plain tensors: {str(error).splitlines()[0]}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"{file} is no state dict: it holds other things than tensors")
    return content


def from_folder(model_class: Any, config: Any, folder: Path, dtype: str, ignore: Iterable[str] = ()) -> Any:
    """A model with the weights of its transformers folder.

    Args:
        ignore: beginnings of the keys that the model has no place for.
    """
    return _load(model_class, str(folder), str(folder), tuple(ignore), config=config, dtype=dtype)


def from_state(
    model_class: Any, config: Any, state: Mapping[str, Tensor], dtype: str, source: str, **arguments: Any
) -> Any:
    """A model with the given weights, whose keys are the model's.

    Args:
        source: where the weights come from, for the error message.
        arguments: further arguments of the model's constructor.
    """
    return _load(model_class, None, source, config=config, dtype=dtype, state_dict=dict(state), **arguments)


def _load(
    model_class: Any, folder: str | None, source: str, ignore: tuple[str, ...] = (), *, dtype: str, **arguments: Any
) -> Any:
    try:
        with _no_progress_bar():
            model, report = model_class.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the rest
                **arguments,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"weights of {source} do not fit {model_class.__name__}: {error}") from error
    except (pickle.UnpicklingError, EOFError) as error:  # torch's advice is to trust the file
        raise UsageError(
            f"the .bin weights of {source} are no file of plain tensors; nothing of them was run"
        ) from error
    unexpected = {key for key in report["unexpected_keys"] if not key.startswith(ignore or "\0")}
    mismatched = [f"{key} {list(found)} for {list(wanted)}" for key, found, wanted in report["mismatched_keys"]]
    require_keys(source, report["missing_keys"], unexpected, mismatched)
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers' own bar and load report would tear a run's live display; ``require_keys`` reports instead."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def require_keys(source: str, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str] = ()) -> None:
    """Complain about keys.

    Raises:
        UsageError: there are any; names the first few of each.
    """
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
        for what, keys in (
            ("missing", sorted(missing)),
            ("unexpected", sorted(unexpected)),
            ("of another shape", sorted(misshapen)),
        )
        if keys
    ]
    if problems:
        raise UsageError(f"weights of {source}: {'; '.join(problems)}. Is this another model?")
