"""The whole of a bench: draw, score, tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ialign.bench import page, results
from t2ialign.bench.folder import BenchFolder
from t2ialign.bench.suites import Item, Suited
from t2ialign.bench.variants import Variant
from t2ialign.errors import T2IAlignError
from t2ialign.run.display import Display
from t2ialign.spec.model import ChosenReward
from t2ialign.storage import files
from t2ialign.tensors import distributed

#: Seconds that a process waits for others, whose share of the images may take longer.
LONGEST = 24 * 3600.0


class Stopped(T2IAlignError):
    """The user asked it to stop; what is drawn stays."""

    exit_code = 130


@dataclass(frozen=True)
class Bench:
    """What is asked: ``items`` of a suite, drawn by every variant, scored by every reward, in a folder."""

    folder: Path
    suited: Suited
    items: Sequence[Item]
    variants: Sequence[Variant]
    rewards: Sequence[ChosenReward]
    seed: int
    micro_batch: int | None = None

    def settings(self) -> dict[str, Any]:
        suite = self.suited.suite
        return {
            "suite": suite.kind,
            "prompts": self.suited.fingerprint,
            "images_per_prompt": suite.images_per_prompt,
            "seed": self.seed,
        }

    def run(self, display: Display | None = None) -> dict[str, Any]:
        """Do what is not done yet, and write summary.json, table.csv, table.md and report.html.

        Returns:
            The summary, on the first rank; an empty one on others.

        Raises:
            UsageError: the folder is of another bench.
            Stopped: by Ctrl-C or SIGTERM.
        """
        from t2ialign.bench.draw import draw, place
        from t2ialign.bench.score import score

        world = distributed.join(LONGEST)
        display = display or Display(quiet=not world.is_main)
        folder, device = BenchFolder(self.folder), self.variants[0].spec.run.device
        try:
            with world.together():
                if world.is_main:
                    about = {variant.name: variant.about for variant in self.variants}
                    kinds = {r.name: {"kind": r.kind, **r.config.model_dump(mode="json")} for r in self.rewards}
                    folder.begin(self.settings(), about, kinds)
                world.meet()
                draw(folder, self.suited, self.items, self.variants, display, world, self.micro_batch)
                score(folder, self.items, [v.name for v in self.variants], self.rewards, device, display, world)
        except KeyboardInterrupt:
            raise Stopped(f"stopped; the same command goes on in {self.folder}") from None
        if not world.is_main:
            return {}
        summary = results.summarise(folder, self.suited, self.items, [v.name for v in self.variants])
        summary["measured_on"] = place(distributed.device(device))
        files.write_json(self.folder / "summary.json", summary)
        files.write_text(self.folder / "table.csv", results.as_csv(summary))
        files.write_text(self.folder / "table.md", results.as_markdown(summary))
        text = page.page(folder, summary, self.items, summary["measured_on"])
        files.write_text(self.folder / "report.html", text)
        return summary
