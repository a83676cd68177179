"""``serve``: rewards for runs in other processes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from t2ialign.cli.score import DEVICES
from t2ialign.errors import UsageError


def serve(
    rewards: Annotated[Path, typer.Argument(metavar="REWARDS", help="A TOML file of [[reward]] tables.")],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    token_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the token that clients must send.")
    ] = None,
    together: Annotated[int, typer.Option(min=1, help="Images of waiting requests that are scored together.")] = 64,
    waiting: Annotated[int, typer.Option(min=1, help="Images that may wait; more are told to come back.")] = 4096,
    megabytes: Annotated[int, typer.Option(min=1, help="Largest request.")] = 256,
    images: Annotated[int, typer.Option(min=1, help="Most images of a request.")] = 256,
    pixels: Annotated[int, typer.Option(min=1, help="Most pixels of an image.")] = 4096 * 4096,
    seconds: Annotated[float, typer.Option(min=0.1, help="Longest time until a request is answered.")] = 600.0,
) -> None:
    """Serve rewards to `remote` rewards of other processes, one process per device."""
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise UsageError(f"serve needs {' and '.join(missing)}: pip install 't2ialign[serve]'")
    if re.fullmatch(DEVICES, device) is None:
        raise UsageError(f"--device {device}: must be auto, cpu, mps, cuda or cuda:N")
    from t2ialign.cli.running import quiet_libraries

    quiet_libraries()
    from t2ialign.serve import server
    from t2ialign.serve.app import Bounds

    chosen = server.read(rewards)
    token = server.secret(token_variable, host)
    bounds = Bounds(megabytes * 2**20, images, pixels, seconds)
    server.serve(chosen, host, port, device, token, bounds, together, waiting)
