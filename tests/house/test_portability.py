"""Nothing that only POSIX has, without a fallback: a run on Windows ends as elsewhere."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "t2ialign", *sorted(ROOT.glob("plugins/*/src"))]
MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty"}
NAMES = {"fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "setsid", "mkfifo", "statvfs", "nice"}
SIGNALS = {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "SIGCHLD", "SIGPIPE"}

#: Two facts of Windows on any machine: no module ``resource``, and fsync needs a handle that may write.
WINDOWS = """
import builtins, errno, fcntl, os

plain_import, plain_fsync = builtins.__import__, os.fsync

def without_resource(name, globals=None, *rest, **more):
    if name == "resource" and (globals or {}).get("__name__", "").startswith("t2ialign"):
        raise ModuleNotFoundError("No module named 'resource'", name=name)
    return plain_import(name, globals, *rest, **more)

def fsync(file):
    number = file if isinstance(file, int) else file.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    plain_fsync(number)

builtins.__import__, os.fsync = without_resource, fsync
"""


def posix_only(source: str) -> list[str]:
    """What a file takes from POSIX without a way out: imports outside ``try``, functions and signals by attribute."""
    tree = ast.parse(source)
    guarded = {id(node) for part in ast.walk(tree) if isinstance(part, ast.Try) for node in ast.walk(part)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in guarded:
            found += [name.name for name in node.names if name.name in MODULES]
        elif isinstance(node, ast.ImportFrom) and id(node) not in guarded and node.module in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            risky = {"os": NAMES, "signal": SIGNALS}.get(node.value.id, ())
            found += [f"{node.value.id}.{node.attr}"] if node.attr in risky else []
    return found


def test_no_module_function_or_signal_of_posix_alone_is_used():
    files = [file for folder in SOURCES for file in folder.rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)): posix_only(file.read_text(encoding="utf-8")) for file in files}
    assert not {file: names for file, names in found.items() if names}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import resource", ["resource"]),
        ("try:\n    import fcntl\nexcept ModuleNotFoundError:\n    fcntl = None", []),
        ("def f():\n    from pwd import getpwall", ["pwd"]),
        ("import os\nos.fork()", ["os.fork"]),
        ("import signal\nsignal.signal(signal.SIGHUP, f)", ["signal.SIGHUP"]),
        ("import signal\ngetattr(signal, 'SIGUSR1', None)", []),
    ],
)
def test_the_search_finds_what_it_is_for(source, found):
    assert posix_only(source) == found


@pytest.mark.skipif(sys.platform == "win32", reason="imitates Windows elsewhere")
def test_a_run_ends_well_where_posix_is_missing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    spec = tmp_path / "spec.toml"
    spec.write_text(
        f"""
[run]
name = "windows"
out = "{tmp_path.as_posix()}"
steps = 2
device = "cpu"
[backend]
kind = "sd15"
checkpoint = "pkg:t2ialign_shapes/checkpoints/sd"
guidance_scale = 1.0
[sampler]
kind = "ddim"
steps = 2
[optimizer]
kind = "eggroll"
population = 2
[[reward]]
kind = "jpeg-compressibility"
[prompts]
file = "prompts.txt"
"""
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "t2ialign", "run", str(spec)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "windows/export/pytorch_lora_weights.safetensors").exists()
    assert "peak_memory_mb" not in (tmp_path / "windows/metrics.jsonl").read_text()
