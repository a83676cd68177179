"""The process of one tracker: ``python -m t2ialign.trackers.worker KIND RUN``. It ends when its standard input does."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from t2ialign.storage import files
from t2ialign.trackers.feed import Feed

if TYPE_CHECKING:
    from t2ialign.trackers.adapters import Adapter

#: Seconds between looks at the run directory.
PAUSE = 0.5


def main(kind: str, path: Path) -> None:
    """Send what a run writes, until the run ends or dies; then the rest, and the end.

    ``trackers/KIND.json`` in the run directory says how far that is, so that a resumed run goes on there, and is
    touched at every look as a sign of life.
    """
    for name in ("SIGINT", "SIGTERM"):  # a stop is the run's business, which then closes the standard input
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    ended = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(ended,), daemon=True).start()
    file = path / "trackers" / f"{kind}.json"
    state = {key: value for key, value in read_state(file).items() if key != "error"}
    try:
        from t2ialign.trackers.adapters import ADAPTERS

        spec = tomli.loads((path / "spec.toml").read_text(encoding="utf-8"))
        adapter = ADAPTERS[kind](path, spec, state.get("id", ""))
        feed = Feed(path, state.get("step", -1), state.get("evaluated", 0))
        while True:
            last = ended.is_set()
            state = _send(adapter, feed, last)
            if read_state(file) != state:
                files.write_json(file, state)
            os.utime(file)
            if last:
                break
            ended.wait(PAUSE)
        adapter.tracker.finish()
    except Exception as error:
        traceback.print_exc()
        files.write_json(file, {**state, "error": f"{type(error).__name__}: {error}"[:500]})
        sys.stderr.flush()
        os._exit(1)  # what the library wants at an exit may hang


def _wait_for_the_end(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


def _send(adapter: Adapter, feed: Feed, last: bool) -> dict[str, Any]:
    for step in feed.steps(everything=last):
        if step.metrics:
            adapter.log(step.metrics, step.number)
        if step.grid:
            adapter.image("samples", step.grid, step.number)
    if last and (final := feed.final()):
        adapter.log(final.metrics, final.step)
        adapter.table(final)
        if final.pairs:
            adapter.image("evaluation/pairs", final.pairs, final.step)
    return {"id": adapter.identity, "step": feed.after, "evaluated": feed.evaluated}


def read_state(file: Path) -> dict[str, Any]:
    """What ``main`` wrote about a tracker; nothing before it did."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
