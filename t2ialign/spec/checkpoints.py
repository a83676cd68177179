"""From a checkpoint reference to a local folder: hub id, folder, or ``pkg:<package>/<path>``. No torch."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.foreign import model_settings, tensor_header

#: Bytes: files up to WHOLE are hashed as they are, of others SAMPLES pieces.
WHOLE, SAMPLES, PIECE = 2**26, 256, 2**12
#: "owner/name@revision" -> the commit that it stands for in this process, once it was fetched; a resumed run fills it.
commits: dict[str, str] = {}
#: Given a hub id, what is told (bytes so far, bytes in all) while its files are on their way.
watchers: list[Callable[[str], AbstractContextManager[Callable[[int, int], None]]]] = []
LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern})/(.+\.safetensors)")


def package_path(reference: str) -> Path:
    """Path of ``pkg:<package>/<path>`` inside an installed package.

    Raises:
        UsageError: the package is not installed, or has no such file.
    """
    package, _, inner = reference.removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"'{reference}': package '{package}' is not installed; pip install {package.replace('_', '-')}"
        )
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise UsageError(f"'{reference}': package '{package}' has no '{inner}'")
    return path


def local_path(reference: str, base: Path | None = None) -> Path | None:
    """The path behind ``pkg:`` or an existing file or folder (relative to ``base`` first); None for anything else."""
    if reference.startswith("pkg:"):
        return package_path(reference)
    return places.existing(reference, base)


def is_local(reference: str) -> bool:
    """Whether it is a folder or file of this machine, which has no revisions."""
    try:
        return local_path(reference) is not None
    except UsageError:
        return True


def on_disk(reference: str, revision: str | None = None) -> Path | None:
    """The folder of a checkpoint if it is here already: local, in a package, or in the hub's cache."""
    if (path := local_path(reference)) is not None or not looks_like_hub_id(reference):
        return path
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{reference.replace('/', '--')}").is_dir():
        return None  # told without the rest of huggingface_hub, which takes long to import
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "tokenizer_config.json", "config.json"):
        if isinstance(file := try_to_load_from_cache(reference, name, revision=revision), str):
            return Path(file).parent
    return None


def looks_like_hub_id(reference: str) -> bool:
    return _HUB_ID.fullmatch(reference) is not None


def hub_file(reference: str) -> tuple[str, str] | None:
    """(hub id, file) of "owner/name/<path>.safetensors"."""
    match = _HUB_FILE.fullmatch(reference)
    return (match[1], match[2]) if match else None


def component_file(component: str) -> str:
    """Name of the LoRA file of a component that no pipeline loads one into."""
    return f"{component}_lora_weights.safetensors"


def find_lora(reference: str | Path) -> Path:
    """The LoRA file behind a file, a folder, a hub id or "owner/name/<file>.safetensors".

    In a folder: ours, else PEFT's, else the only safetensors file. Of a hub id, ours or PEFT's: others may be models.

    Raises:
        UsageError: nothing is there, or several files could be meant.
    """
    one = None if local_path(str(reference)) else hub_file(str(reference))
    wanted = (one[1],) if one else (LORA_FILE, PEFT_FILE, PEFT_CONFIG)
    path = resolve(one[0] if one else str(reference), patterns=wanted)
    path = path / one[1] if one else path
    if path.is_file():
        return path
    if one:
        raise UsageError(f"{reference}: the repository {one[0]} has no {one[1]}")
    for name in (LORA_FILE, PEFT_FILE):
        if (path / name).is_file():
            return path / name
    files = places.listed(path, "*.safetensors")
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UsageError(
            f"{reference}: which LoRA? It has no {LORA_FILE} and no {PEFT_FILE}; safetensors files: {names}"
        )
    return files[0]


def lora_files(file: Path) -> list[Path]:
    """A LoRA's file, and what is read beside it: PEFT's settings, and the files of other components."""
    beside = [file.with_name(PEFT_CONFIG)] if file.name == PEFT_FILE else []
    beside += places.listed(file.parent, component_file("*"))
    return [file, *(one for one in beside if one.is_file() and one.name not in (file.name, LORA_FILE))]


def check_lora(reference: str, base: Path | None = None) -> str | None:
    """The same as ``check`` for a LoRA, which may be one file of a hub repository."""
    wrong = None if hub_file(reference) else check(reference, base)
    return wrong and f"{wrong}, nor 'owner/name/<file>.safetensors'"


def check(reference: str, base: Path | None = None) -> str | None:
    """What is wrong with a checkpoint reference, as far as can be told without a network; None when nothing is."""
    try:
        found = local_path(reference, base)
    except UsageError as error:
        return str(error)
    if found is None and not looks_like_hub_id(reference):
        return "is no existing folder, no 'pkg:<package>/<path>' and no hub id of the form 'owner/name'"
    return None


def check_model(folder: Path) -> None:
    """Look at a folder in the transformers format before a library builds what it tells.

    Raises:
        UsageError: it has no ``config.json``, or one that wants code of its own or endless layers; or weights that are
            no safetensors file, or were cut.
    """
    settings = folder / "config.json"
    if not settings.is_file():
        raise UsageError(f"{folder} has no config.json: is it a model in the transformers format?")
    file = settings
    try:
        model_settings(settings)
        for file in places.listed(folder, "*.safetensors"):
            tensor_header(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} {error}") from error


def resolve(
    reference: str,
    revision: str | None = None,
    patterns: Iterable[str] = ("*.json", "*.safetensors", "*.txt", "*.model"),
) -> Path:
    """A local folder (or file) for the reference; a hub id is downloaded into the hub cache on first use.

    All files of a hub id are of one commit, see ``commits``, also if the repository changes meanwhile.

    Raises:
        UsageError: nothing is there, the repository is gated or unknown, or the network is out of reach.
    """
    found = local_path(reference)
    if found is not None:
        return found
    if not looks_like_hub_id(reference):
        raise UsageError(f"checkpoint '{reference}' {check(reference)}")
    from huggingface_hub import snapshot_download

    edition = f"{reference}@{revision or 'main'}"
    try:
        chosen = commits.get(edition, revision)
        with ExitStack() as stack:
            tells = [stack.enter_context(watch(reference)) for watch in watchers]
            told: dict[str, Any] = {"tqdm_class": _bars(tells)} if tells else {}
            folder = Path(snapshot_download(reference, revision=chosen, allow_patterns=list(patterns), **told))
        commits.setdefault(edition, folder.name)  # <cache>/models--owner--name/snapshots/<commit>
        return folder
    except OSError as error:  # every error of the hub's client is one
        raise UsageError(f"checkpoint '{reference}'{_hub_fault(error, reference, revision)}") from error


def _bars(tells: Sequence[Callable[[int, int], None]]) -> type:
    """What the hub's client takes for its bars: they draw nothing, and tell of the bytes of one download.

    The client has several of these: for files, for what came over the network, and for what is on the disk.
    """
    from tqdm import tqdm

    counted: list[Any] = []

    class Told(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": False})
            if self.unit == "B":
                counted.append(self)

        def display(self, *arguments: Any, **options: Any) -> None:
            if total := max((int(bar.total or 0) for bar in counted), default=0):
                for tell in tells:
                    tell(min(total, max(int(bar.n) for bar in counted)), total)

        def clear(self, *arguments: Any, **options: Any) -> None:
            """Nothing was drawn."""

        def close(self) -> None:
            """Nor is anything left behind."""

    return Told


def _hub_fault(error: BaseException, reference: str, revision: str | None) -> str:
    """What kept the hub's client from a repository, and what to do; it wraps its faults in one another."""
    from huggingface_hub import constants, errors

    faults = [error]
    while found := faults[-1].__cause__ or faults[-1].__context__:
        faults.append(found)

    def has(*kinds: type[BaseException]) -> BaseException | None:
        return next((fault for fault in faults if isinstance(fault, kinds)), None)

    if has(errors.GatedRepoError):
        page = f"https://huggingface.co/{reference}"
        return f" is gated: accept its licence at {page}, then run 'hf auth login'"
    if has(errors.RepositoryNotFoundError):
        return ": no such repository on the hub (or it is private: 'hf auth login')"
    if has(errors.RevisionNotFoundError):
        return f": no revision '{revision}'{_revisions(reference)}"
    if (fault := has(PermissionError, NotADirectoryError, FileExistsError)) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT) and (fault := error)
    ):
        return f": the hub's cache {constants.HF_HUB_CACHE} cannot be written ({fault}); HF_HOME names another folder"
    absent = " is not in the local hub cache and"
    if has(errors.OfflineModeIsEnabled):
        return f"{absent} HF_HUB_OFFLINE keeps the hub from being asked; unset it once, or give a local folder"
    return (
        f"{absent} the hub cannot be reached ({constants.ENDPOINT}: {type(faults[-1]).__name__}); give a local folder,"
        " or connect once"
    )


def _revisions(reference: str) -> str:
    """Those that a repository has, as far as the hub tells."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(reference)
    except OSError:
        return ""
    names = [ref.name for ref in [*refs.branches, *refs.tags]]
    return f"; it has {', '.join(map(repr, names[:8]))}{', ...' if names[8:] else ''}" if names else ""


def fingerprint(folder: Path, parts: Iterable[str]) -> str:
    """A hash of what the files of the named sub-folders hold, whenever and wherever they were written.

    Of large files, weights that is, the beginning and ``SAMPLES`` short pieces are read, and the header of safetensors.
    """
    found = hashlib.blake2b(digest_size=12)
    for part in parts:
        for file in places.listed(folder / part, "**/*"):
            if file.is_file():
                size = file.stat().st_size
                found.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
                with file.open("rb") as stream:
                    if size <= WHOLE:
                        found.update(stream.read())
                        continue
                    header = struct.unpack("<Q", stream.read(8))[0] if file.suffix == ".safetensors" else 0
                    found.update(stream.read(min(max(header, PIECE), WHOLE)))
                    for number in range(SAMPLES):
                        stream.seek((size - PIECE) * (number + 1) // SAMPLES)
                        found.update(stream.read(PIECE))
    return found.hexdigest()


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in the folder's safetensors files, from their headers alone.

    Raises:
        UsageError: a file is none, or was cut.
    """
    shapes: dict[str, list[int]] = {}
    for file in places.listed(folder, "*.safetensors"):
        try:
            header = tensor_header(file)
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} {error}") from error
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return shapes
