"""Train the checkpoints of t2ialign-shapes from nothing, on one CPU core.

    python tools/train_shapes.py all --work runs/shapes --package plugins/t2ialign-shapes

Stages, in order; each loads what the earlier ones left in the work directory, trains, checkpoints
itself, and does nothing if it is already complete. A killed run continues where it stopped.

    autoencoder   pixels to latents                            about  3 minutes
    sprint        the one-step generator                       about 25
    washed        the same, continued on faded pictures        about  2
    clip          a CLIP on clean renders                      about  5
    reward        that CLIP, tuned on generator output         about  3
    package       evaluate, write checkpoints, cards, prompts  about  2

A small decoder for drawing while searching, distilled on the shipped checkpoints:

    tiny-decoder  train, evaluate, write checkpoint and card   about  6

The same world in the format of Stable Diffusion; needs the stage `clip`:

    sd-autoencoder  pixels to latents                          about  6
    sd              the multi-step generator                   about 30
    sd-turbo        the one-step generator                     about 12
    sd-relations    the multi-step generator, taught places    about 10
    sd-package      evaluate, write checkpoints and cards      about  8
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

TINY = "tiny-decoder"
SPRINT_STAGES = ("autoencoder", "sprint", "washed", "clip", "reward", "package")
SD_STAGES = ("sd-autoencoder", "sd", "sd-turbo", "sd-relations", "sd-package")
STAGES = (*SPRINT_STAGES, TINY, *SD_STAGES)


def main() -> None:
    """Run the chosen stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--work", type=Path, required=True, help="where stages keep their files")
    parser.add_argument(
        "--package",
        type=Path,
        default=Path(__file__).parents[1] / "plugins" / "t2ialign-shapes",
        help="the plugin that the stage `package` writes into",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        run_stage(stage, arguments.work, arguments.package)


def run_stage(stage: str, work: Path, package: Path) -> None:
    """Run one stage; the stages before it must be complete."""
    from shapes_training import autoencoder, sprint

    if stage in SD_STAGES:
        run_sd_stage(stage, work, package)
    elif stage == "autoencoder":
        autoencoder.run(work)
    elif stage == "sprint":
        sprint.run(work, autoencoder.run(work))
    elif stage == "washed":
        sprint.run_washed(work, autoencoder.run(work))
    elif stage == "clip":
        from shapes_training import clip

        clip.run(work)
    elif stage == "reward":
        from shapes_training import reward

        reward.run(work)
    elif stage == TINY:
        from shapes_training.tiny_decoder import write_package

        write_package(work, package)
    else:
        from shapes_training.package import write_package

        write_package(work, package)


def run_sd_stage(stage: str, work: Path, package: Path) -> None:
    """Run one stage of the models in Stable Diffusion's format."""
    from shapes_training import sd, sd_autoencoder, sd_relations, sd_turbo

    if stage == "sd-autoencoder":
        sd_autoencoder.run(work)
    elif stage == "sd":
        sd.run(work, sd_autoencoder.run(work))
    elif stage == "sd-turbo":
        sd_turbo.run(work, sd_autoencoder.run(work))
    elif stage == "sd-relations":
        sd_relations.run(work, sd_autoencoder.run(work))
    else:
        from shapes_training.sd_package import write_package

        write_package(work, package)


if __name__ == "__main__":
    main()
