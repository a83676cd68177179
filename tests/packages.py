"""Packages installed into folders of their own, and the command line on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def pip_install(target: Path, *sources: Path) -> None:
    """Install packages into a folder of their own; they are on the path only where a test puts it there."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, sources)], check=True, timeout=600)


def python(
    *arguments: str | Path, path: Path, cwd: Path | None = None, alone: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with a folder of packages before all others, or with nothing else of this process's path."""
    paths = [str(path), *([] if alone else filter(None, [os.environ.get("PYTHONPATH")]))]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        timeout=300,
        check=False,
        cwd=cwd,
    )


def t2ialign(*arguments: str | Path, path: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line; see ``python``."""
    return python("-m", "t2ialign", *arguments, path=path, **options)


def listing(path: Path, **options: Any) -> dict[str, Any]:
    """What ``plugins --json`` says; its exit code tells whether a plugin is broken."""
    done = t2ialign("plugins", "--json", path=path, **options)
    found = json.loads(done.stdout)
    assert done.returncode == any(status["error"] for status in found["plugins"]), done.stderr
    return found
