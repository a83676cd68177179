"""Send a folder to the hub, by its own client: one repository, one commit, private unless asked otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.publish import card
from t2ialign.storage import files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MESSAGE = "Upload with t2ialign"


def push(folder: Path, repo: str, public: bool = False, api: HfApi | None = None) -> str:
    """Make the repository if there is none, and commit the folder to it.

    Args:
        repo: "name" or "owner/name".
        api: default: the client with the token and endpoint of this machine.

    Returns:
        The repository's address.

    Raises:
        UsageError: not logged in, not allowed, offline, no such name, a card that the hub refuses, or a repository that
            is public already where a private one is asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    api = api or HfApi()
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        found = api.model_info(address.repo_id)
        if not public and not found.private:  # exist_ok leaves a public one public, and says nothing
            raise UsageError(f"{address.repo_id} is a public repository: push there with --public, or name another one")
        _with_licence_of_the_base(folder, api)
        paths = [file for file in places.listed(folder, "**/*") if file.is_file()]
        operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in paths]
        api.create_commit(address.repo_id, operations, commit_message=MESSAGE)
        return str(address)
    except HFValidationError as error:
        raise UsageError(f"--repo {repo}: {error}") from error
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise UsageError(f"push to {repo}: {error}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        hint = {401: "; log in with: hf auth login", 403: "; the token may not write there"}.get(status or 0, "")
        raise UsageError(f"push to {repo}: {str(error).strip().splitlines()[0]}{hint}") from error
    except ValueError as error:  # the hub's check of the card
        raise UsageError(f"push to {repo}: the hub refuses the card {folder / 'README.md'}: {error}") from error
    except OSError as error:
        raise UsageError(f"push to {repo}: the hub cannot be reached ({type(error).__name__}: {error})") from error


def _with_licence_of_the_base(folder: Path, api: HfApi) -> None:
    """Name the base's licence where so far the card only links to it."""
    from huggingface_hub.errors import HfHubHTTPError

    path = folder / "README.md"
    head, body = card.split(path.read_text(encoding="utf-8"))
    base = head.get("base_model")
    if head.get("license_name") != "of-the-base-model" or not base:
        return
    try:
        data = api.model_info(base).card_data
    except (HfHubHTTPError, OSError):
        return  # the link stays
    if data is not None and (licence := data.get("license")):
        named = {key: value for key in ("license_name", "license_link") if (value := data.get(key))}
        kept = {key: value for key, value in head.items() if not key.startswith("license")}
        files.write_text(path, card.joined({"license": licence, **named, **kept}, body))
