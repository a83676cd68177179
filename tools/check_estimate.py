"""Compare ``t2ialign estimate`` with the measured peak of runs: python tools/check_estimate.py [SPEC ...]

Each spec is estimated, and run for two steps, in processes of their own on this machine's CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SPECS = [f"specs/{name}.toml" for name in ("quickstart", "reno-shapes", "dav-shapes", "nft-shapes", "ppo-epd-shapes")]
#: A short run: memory does not grow with steps or images evaluated.
SHORT = ["run.device=cpu", "run.steps=2", "evaluation.limit=16", "evaluation.every=0", "samples.every=0"]


def main(specs: list[str]) -> int:
    """Print estimate and measurement in MiB; exit code 1 where they differ by more than 15 %."""
    worst = 0.0
    print(f"{'spec':32}{'estimate':>10}{'measured':>10}{'difference':>12}")
    for spec in specs:
        overrides = [word for text in SHORT for word in ("--set", text)]
        estimated = json.loads(_t2ialign("estimate", spec, *overrides, "--json", "--flops", "1e9"))["peak"] / 2**20
        with tempfile.TemporaryDirectory() as folder:
            _t2ialign("run", spec, *overrides, "--set", f"run.out={json.dumps(folder)}")
            lines = next(Path(folder).glob("*/timing.jsonl")).read_text(encoding="utf-8").splitlines()
            measured = max(json.loads(line)["peak_memory_mb"] for line in lines)
        difference = estimated / measured - 1
        worst = max(worst, abs(difference))
        print(f"{Path(spec).stem:32}{estimated:>10.0f}{measured:>10.0f}{difference:>+12.1%}", flush=True)
    return int(worst > 0.15)


def _t2ialign(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "t2ialign", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"t2ialign {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or SPECS))
