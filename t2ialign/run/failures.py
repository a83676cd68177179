"""An exception out of a part becomes one line that names part, package and step; its traceback goes into a file."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from t2ialign.errors import PartError, T2IAlignError, culprit
from t2ialign.ranks.world import PeerFailed
from t2ialign.storage import files


class Interrupted(T2IAlignError):
    """The user (or the cluster) asked the run to stop; what was done is kept. All ranks raise it together."""

    exit_code = 130
    agreed = True


class Stopped(T2IAlignError):
    """The machine stopped the run; what was done is kept."""


def told(error: Exception, when: str = "") -> str:
    """One line about an exception, by the name of the part that raised it; ``when`` is like " at step 3"."""
    line = str(error) or type(error).__name__
    if isinstance(error, T2IAlignError) or not (who := culprit(error)):
        return line
    return f"{who} failed{when}: {type(error).__name__}: {error}"


def keep_tracebacks(run: Path, errors: Sequence[Exception]) -> str:
    """Write where some exceptions come from into a run directory; gives the sentence that says so, or nothing."""
    unknown = ["".join(traceback.format_exception(error)) for error in errors if not isinstance(error, T2IAlignError)]
    unknown += [error.trace for error in errors if isinstance(error, PeerFailed) and error.trace]
    if not unknown:
        return ""
    path = run / "traceback.txt"
    files.write_text(path, "\n".join(unknown))
    return f"\nThe traceback is in {path}"


@contextmanager
def explained(run: Path, when: str) -> Iterator[None]:
    """
    Raises:
        PartError: in place of an exception that came out of a part. A fault of the core's own stays what it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, T2IAlignError) or culprit(error) is None:
            raise
        raise PartError(
            f"{told(error, f' {when}')}{keep_tracebacks(run, [error])}; checkpoints are safe: t2ialign resume {run}"
        ) from error
