"""Build, check and publish the core and every plugin: one version, one order.

    python tools/release.py build      wheels and sdists of all packages into dist/
    python tools/release.py check      dist/: all packages, one version, readable metadata, no stray file
    python tools/release.py notes      this version's part of docs/changelog.md
    python tools/release.py publish    the above, then twine upload; --dry-run stops before it

Building needs the package build, checking and publishing twine. Nothing is published that was not built and checked by
this very call, from a clean working tree whose tag is v<version>.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
#: Never part of a package.
STRAY = re.compile(r"(^|/)(\.git|__pycache__|runs|checkpoint-|\.env)(/|$)|\.pyc$")


def packages() -> dict[str, Path]:
    """Name -> folder, the core first, each after what it depends on."""
    folders = [ROOT, *sorted(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))]
    projects = {project(folder)["name"]: folder for folder in folders}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        needs = [re.split(r"[^\w-]", text)[0] for text in project(projects[name]).get("dependencies", ())]
        for need in needs:
            if need in projects and need not in ordered:
                add(need)
        ordered.setdefault(name, projects[name])

    for name in projects:
        add(name)
    return ordered


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def version() -> str:
    """Of all packages.

    Raises:
        SystemExit: they have several.
    """
    found = {name: project(folder)["version"] for name, folder in packages().items()}
    if len(set(found.values())) != 1:
        sys.exit("packages have several versions: " + ", ".join(f"{name} {one}" for name, one in found.items()))
    return next(iter(found.values()))


def build() -> None:
    version()
    shutil.rmtree(DIST, ignore_errors=True)
    for name, folder in packages().items():
        print(f"building {name}", flush=True)
        command = [sys.executable, "-m", "build", "--outdir", str(DIST), str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def check(dist: Path = DIST, twine: bool = True) -> list[str]:
    """What is wrong with the files; empty where all is well."""
    wanted, wrong = version(), []
    files = {file.name: file for file in dist.iterdir()} if dist.is_dir() else {}
    for name in packages():
        stem = f"{name.replace('-', '_')}-{wanted}"
        for file in (f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"):
            if file not in files:
                wrong.append(f"{file} is missing")
                continue
            names = _names(files.pop(file))
            wrong += [f"{file} holds {stray}" for stray in names if STRAY.search(stray)]
            if not any(inner.endswith("py.typed") for inner in names):
                wrong.append(f"{file} has no py.typed")
    wrong += [f"{file} is of no package or of another version" for file in files]
    if twine and not wrong:
        command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir()))]
        done = subprocess.run(command, check=False)
        wrong += ["twine check failed"] * bool(done.returncode)
    return wrong


def _names(file: Path) -> list[str]:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return wheel.namelist()
    with tarfile.open(file) as sdist:
        return sdist.getnames()


def notes() -> str:
    """The newest part of the changelog.

    Raises:
        SystemExit: it is not of this version.
    """
    text = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    heading, body = re.split(r"^## ", text, flags=re.MULTILINE)[1].split("\n", 1)
    if not version().startswith(heading.split()[0]):
        sys.exit(f"docs/changelog.md begins with '{heading}', and the packages have version {version()}")
    return body.strip()


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def publish(dry_run: bool) -> None:
    tag = f"v{version()}"
    if _git("status", "--porcelain").strip():
        sys.exit("the working tree is not clean")
    if tag not in _git("tag", "--points-at", "HEAD").split():
        sys.exit(f"HEAD has no tag {tag}")
    notes()
    build()
    if wrong := check():
        sys.exit("\n".join(wrong))
    if dry_run:
        print("ready; nothing was uploaded")
        return
    subprocess.run([sys.executable, "-m", "twine", "upload", *map(str, sorted(DIST.iterdir()))], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "check", "notes", "publish"])
    parser.add_argument("--dry-run", action="store_true", help="publish: build and check only")
    options = parser.parse_args()
    if options.what == "publish":
        publish(options.dry_run)
    elif options.what == "check":
        sys.exit("\n".join(check()) or 0)
    elif options.what == "notes":
        print(notes())
    else:
        build()


if __name__ == "__main__":
    main()
