"""Load the rewards of a TOML file and serve them until a signal comes."""

from __future__ import annotations

import ipaddress
import logging
import os
from pathlib import Path

import uvicorn

from t2ialign.config import RewardMixConfig
from t2ialign.errors import UsageError
from t2ialign.serve.app import Bounds, application
from t2ialign.serve.batcher import Batcher
from t2ialign.spec import toml
from t2ialign.spec.model import ChosenReward
from t2ialign.spec.parse import parse_rewards
from t2ialign.tensors.distributed import device as resolve_device


def read(path: Path) -> tuple[ChosenReward, ...]:
    """The ``[[reward]]`` tables of a file.

    Raises:
        UsageError: it has other tables, or none.
        SpecError: a reward's options are wrong; names every problem.
    """
    tree = toml.read(path)
    if other := tree.keys() - {"reward"}:
        raise UsageError(f"{path}: unknown table '{min(other)}'; a server's file has [[reward]] tables alone")
    tables = tree.get("reward")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: reward must be [[reward]] tables")
    mixing = RewardMixConfig.model_fields.keys() - {"name"}  # weights and such are the clients' own
    own = [{key: value for key, value in table.items() if key not in mixing} for table in tables]
    return parse_rewards(own, str(path), path.resolve().parent)


def secret(variable: str | None, host: str) -> str | None:
    """The token that clients must send.

    Raises:
        UsageError: the variable is not set, or others could reach the server without a token.
    """
    if variable is not None:
        if not os.environ.get(variable):
            raise UsageError(f"environment variable {variable} (--token-variable) is not set")
        return os.environ[variable]
    if not _is_own(host):
        raise UsageError(f"--host {host} lets others in: give them a token with --token-variable NAME")
    return None


def _is_own(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    chosen: tuple[ChosenReward, ...],
    host: str,
    port: int,
    device: str,
    token: str | None,
    bounds: Bounds,
    together: int,
    waiting: int,
) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted is answered first."""
    place = resolve_device(device)
    rewards = {part.name: part.build(place) for part in chosen}
    batcher = Batcher(rewards, together, waiting)
    app = application(batcher, bounds, token)
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    uvicorn.run(
        app, host=host, port=port, log_level="info", access_log=False, server_header=False, timeout_keep_alive=60
    )
