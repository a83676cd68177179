"""Writes the tables of the docs that are made from the code; tests compare them with what is written.

python tools/docs_tables.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

from t2ialign.config import Config
from t2ialign.idle import Idle
from t2ialign.plugins import registry
from t2ialign.remarks.tables import IDLE
from t2ialign_diffusers.config import LATENT_KEYS
from t2ialign_solvers.scheduler_classes import BOTH, DRAWN, RECTIFIED_FLOW, REFUSED

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by tools/docs_tables.py; a test compares it with the code. -->"


def idle_page() -> str:
    """Every option that does nothing at some settings of the others."""
    lines = [
        "# Settings without effect",
        "",
        MADE,
        "",
        "Each is one line that starts with `note:`, told before the work, see [messages](../messages.md). An option"
        " that has its default is never told.",
        "",
    ]
    for options, found in declarations():
        lines += [f"## {title(options)}", "", "| option | without effect, or less than it says | what to do |"]
        lines += ["|---|---|---|", *(idle_row(idle) for idle in found), ""]
    return "\n".join(lines)


def declarations() -> Iterator[tuple[type[Config], tuple[Idle, ...]]]:
    """Classes of options that declare some, the core's first, each once."""
    yield from IDLE.items()
    parts = [declared.config for kinds in registry().parts.values() for _, declared in sorted(kinds.items())]
    further = [table for config in parts for table in nested(config)]
    for options in dict.fromkeys(base for config in [*parts, *further] for base in reversed(config.__mro__)):
        if found := vars(options).get("idle", ()):
            yield options, found


def nested(config: type[Config]) -> Iterator[type[Config]]:
    """The tables inside a table."""
    for field in config.model_fields.values():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        yield from (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config))


def title(options: type[Config]) -> str:
    """What a class of options is for, in the first line of its description."""
    return (options.__doc__ or "").partition("\n")[0].rstrip(".").replace("``", "`")


def idle_row(idle: Idle) -> str:
    return f"| {', '.join(f'`{name}`' for name in idle.options.split())} | {idle.when} | {idle.remedy} |"


def scheduler_page() -> str:
    """Every scheduler class of diffusers with the families of models."""
    lines = [
        "# Schedulers of diffusers",
        "",
        MADE,
        "",
        "What the sampler `diffusers` does with every class of the pinned version. Families: models that predict noise"
        " (SD, SDXL, PixArt), rectified flows (SD3, FLUX, Z-Image and their like), Sana, and all others, which sample"
        " in their own way (Sana Sprint, VAR, Infinity). What is refused is refused by name in `validate`.",
        "",
        "| class | predicts noise | rectified flow | Sana | others |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(DRAWN | REFUSED.keys()):
        if name in REFUSED:
            cells = [f"refused: {REFUSED[name]}", *["refused"] * 3]
        elif name in BOTH:
            cells = ["drawn", "drawn with `use_flow_sigmas` in `options`, else refused", "drawn", "refused"]
        else:
            flow = name in RECTIFIED_FLOW
            cells = [*(("refused", "drawn", "drawn") if flow else ("drawn", "refused", "refused")), "refused"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


PATH, GRID = "used: noise of every time", "used: times of the steps"
ALONE = 'used by `sampler.kind = "diffusers"` alone; the other samplers take steps of their own'
SHIFT = (
    "used: shift of a flow's times, where it is dynamic by the size of the image; FLUX.2 klein has its pipeline's own"
)
#: Keys of the schedulers that are drawn -> what is done with them.
SCHEDULER_KEYS = {
    **dict.fromkeys(("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"), PATH),
    **dict.fromkeys(("rescale_betas_zero_snr", "snr_shift_scale"), PATH),
    "prediction_type": "used: what the network's output means",
    **dict.fromkeys(("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type"), GRID),
    **dict.fromkeys(("lambda_min_clipped", "use_lu_lambdas", "interpolation_type", "timestep_type"), GRID),
    **dict.fromkeys(("sigma_min", "sigma_max"), GRID),
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        f'{GRID}; of FLUX, Qwen-Image and Z-Image by `sampler.kind = "diffusers"` alone',
    ),
    "invert_sigmas": ALONE,
    "use_flow_sigmas": "used: the model is a rectified flow",
    **dict.fromkeys(("shift", "flow_shift", "base_shift", "max_shift", "base_image_seq_len"), SHIFT),
    **dict.fromkeys(("max_image_seq_len", "use_dynamic_shifting", "time_shift_type"), SHIFT),
    "shift_terminal": "used: the last time before 0",
    **dict.fromkeys(("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio"), ALONE),
    **dict.fromkeys(("sample_max_value", "algorithm_type", "solver_order", "solver_type", "solver_p"), ALONE),
    **dict.fromkeys(("lower_order_final", "euler_at_final", "disable_corrector", "predict_x0"), ALONE),
    **dict.fromkeys(("predictor_order", "corrector_order", "tau_func", "skip_prk_steps", "variance_type"), ALONE),
    **dict.fromkeys(("stochastic_sampling", "original_inference_steps", "timestep_scaling"), ALONE),
    **dict.fromkeys(("scale_factors", "upscale_mode"), ALONE),
}
BUILDS = "used: builds the module, as in diffusers"
TILES = "the size of tiles with `vae_tiling`, else nothing"
UPCAST = "`vae_dtype` decides: float32 beside a float16 network unless told otherwise"
#: Keys of the other components with an effect beyond the module itself -> what is done with them.
COMPONENT_KEYS = {
    "AutoencoderDC": {},
    "AutoencoderKL": {"sample_size": TILES, "force_upcast": UPCAST},
    "AutoencoderKLFlux2": {
        "sample_size": TILES,
        "batch_norm_eps": "used: part of the latents' deviation",
        "batch_norm_momentum": "training of the autoencoder alone",
    },
    "AutoencoderKLQwenImage": {"dropout": "training of the autoencoder alone"},
    "AutoencoderTiny": {
        "scaling_factor": "used on latents",
        "shift_factor": "used on latents",
        "latent_magnitude": "used by none: it scales latents to bytes and back",
        "latent_shift": "used by none: it scales latents to bytes and back",
        "force_upcast": UPCAST,
    },
    "UNet2DConditionModel": {
        "sample_size": "used: the usual `image_size`",
        "time_cond_proj_dim": "used: guidance is an input of the network, so that there is no second branch",
    },
    "PixArtTransformer2DModel": {
        "sample_size": "used: the usual `image_size`, and the scale of positions",
        "use_additional_conditions": "used: resolution and aspect ratio are inputs",
    },
    "SD3Transformer2DModel": {"sample_size": "used: the usual `image_size`"},
    "FluxTransformer2DModel": {"guidance_embeds": "used: `distilled_guidance` is an input"},
    "Flux2Transformer2DModel": {},
    "QwenImageTransformer2DModel": {},
    "SanaTransformer2DModel": {
        "sample_size": "used: the usual `image_size`",
        "guidance_embeds": "used: guidance is an input (Sana Sprint)",
    },
    "ZImageTransformer2DModel": {},
}


def configuration_page() -> str:
    """Every configuration key of the components of checkpoints."""
    import diffusers

    lines = [
        "# Configurations of checkpoints",
        "",
        MADE,
        "",
        "What is done with every key that the classes of the pinned diffusers take. Keys that a class does not take"
        " change nothing there either. A text encoder and its tokenizer are built and called by diffusers' pipeline.",
        "",
        "## Schedulers",
        "",
        "| keys | what is done with them |",
        "|---|---|",
    ]
    found = {key for name in DRAWN for key in keys_of(getattr(diffusers, name))}
    lines += grouped((key, SCHEDULER_KEYS[key]) for key in sorted(found))
    for name, special in COMPONENT_KEYS.items():
        lines += ["", f"## {name}", "", "| keys | what is done with them |", "|---|---|"]
        lines += grouped((key, special.get(key) or latent_key(name, key)) for key in keys_of(getattr(diffusers, name)))
    return "\n".join([*lines, ""])


def grouped(found: Iterable[tuple[str, str]]) -> list[str]:
    """Rows of a table, one for all keys with which the same is done."""
    rows: dict[str, list[str]] = {}
    for key, done in found:
        rows.setdefault(done, []).append(f"`{key}`")
    return [f"| {', '.join(keys)} | {done} |" for done, keys in rows.items()]


def keys_of(component: type) -> list[str]:
    return [name for name in inspect.signature(component.__init__).parameters if name not in ("self", "kwargs")]


def latent_key(name: str, key: str) -> str:
    """What is done with a key of an autoencoder that is about latents; any other key builds the module."""
    if key not in LATENT_KEYS:
        return BUILDS
    kinds = [kind for kind, part in sorted(registry().parts["backend"].items()) if autoencoder_of(kind, part) == name]
    heeding = [kind for kind in kinds if key in registry().parts["backend"][kind].config.latent_keys]
    used = f"used on latents by {', '.join(f'`{kind}`' for kind in heeding)}" if heeding else "used by none"
    return used if len(heeding) == len(kinds) else f"{used}; refused in `validate` by the others"


def autoencoder_of(kind: str, part: object) -> str | None:
    """Class of a diffusers backend's autoencoder."""
    if not hasattr(part.config, "latent_keys"):  # type: ignore[attr-defined]
        return None
    return {
        "sana": "AutoencoderDC",
        "sana-sprint": "AutoencoderDC",
        "qwen-image": "AutoencoderKLQwenImage",
        "flux2-klein": "AutoencoderKLFlux2",
    }.get(kind, "AutoencoderKL")


#: File below docs/ -> what makes its text.
PAGES = {
    "reference/idle.md": idle_page,
    "reference/schedulers.md": scheduler_page,
    "reference/configurations.md": configuration_page,
}


def main() -> None:
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
