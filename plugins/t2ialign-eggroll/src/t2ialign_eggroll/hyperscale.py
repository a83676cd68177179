"""A command line of HyperscaleES_T2I's main program as a spec of ours, with a comment wherever something differs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from typing import Any

from t2ialign.errors import UsageError, nearest
from t2ialign_eggroll.hyperscale_flags import CACHES, FLAGS, REFUSED, Flag

BACKENDS = ("sana_one_step", "sana_pipeline", "var", "zimage", "infinity")
PREFIX = {"sana_one_step": "sana", "sana_pipeline": "sana", "var": "var", "zimage": "zimage", "infinity": "inf"}
#: Their variants of Infinity: our name and pixel budget.
VARIANTS = {"2b_reg": ("2b", "0.60M"), "125m_256": ("125m", "0.06M"), "8b_512": ("8b-512", "0.25M")}
TRUE, FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")
NAME_CHOICES = {
    "backend": BACKENDS,
    "inf_variant": tuple(VARIANTS),
    "matmul_precision": ("high", "highest"),
    "compile_mode": ("default", "reduce-overhead", "max-autotune"),
    "sana_dtype_latents": ("float16", "bfloat16"),
}


def spec_text(command: str) -> str:
    """The spec of a command line, as TOML with comments.

    Args:
        command: "python main.py --backend var --pop_size 32"; what stands before the first flag is not looked at.

    Raises:
        UsageError: an unknown flag, a value of the wrong type, text that is no flag, or what cannot be had here.
    """
    given = parse(command)
    value: dict[str, Any] = {name: given.get(name, flag.default) for name, flag in FLAGS.items()}
    _refuse(given, value)
    tables = {"run": _run(value)} | _backend(value) | {"optimizer": _optimizer(value)}
    tables["backend"] |= _compilation(value["backend"], given)
    lines = ["# From a command line of HyperscaleES_T2I.", *_comments(given, value["backend"])]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(entry)}" for key, entry in table.items())]
    logged = max(1, value["max_log_batches"]) * _prompts(value)["per_step"]
    lines += ["", "[samples]", f"count = {min(logged, 64)}"]
    for kind, weight in _rewards(value).items():
        lines += ["", "[[reward]]", f"kind = {_toml(kind)}", f"weight = {_toml(weight)}"]
    lines += ["", "[prompts]", *(f"{key} = {_toml(entry)}" for key, entry in _prompts(value).items())]
    return "\n".join(lines) + "\n"


def parse(command: str) -> dict[str, bool | int | float | str]:
    """The flags of a command line; a flag without a value is true."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the command line cannot be read: {error}") from error
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    found: dict[str, bool | int | float | str] = {}
    words = words[first:]
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in FLAGS:
            hint = nearest(name, list(FLAGS))
            raise UsageError(
                f"main.py of HyperscaleES_T2I has no flag '{word}'" + (f", did you mean '--{hint}'?" if hint else "")
            )
        if not equals:
            bare = not words or words[0].startswith("--")
            if bare and not isinstance(FLAGS[name].default, bool):
                raise UsageError(f"--{name} needs a value")
            text = "true" if bare else words.pop(0)
        found[name] = _typed(name, text)
    return found


def _typed(name: str, text: str) -> bool | int | float | str:
    default = FLAGS[name].default
    if isinstance(default, bool):
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise UsageError(f"--{name} is true or false, not '{text}'")
    if name in NAME_CHOICES and text not in NAME_CHOICES[name]:
        raise UsageError(f"--{name} is one of {', '.join(NAME_CHOICES[name])}, not '{text}'")
    try:
        found = type(default)(text)
    except ValueError:
        found = float("nan")
    if isinstance(found, float) and not math.isfinite(found):
        raise UsageError(f"--{name} is {'a whole number' if isinstance(default, int) else 'a number'}, not '{text}'")
    return found


def _refuse(given: dict[str, Any], value: dict[str, Any]) -> None:
    """One error for flags of the chosen backend that ask for what is not here."""
    prefix = PREFIX[value["backend"]]
    for name in (name for name in given if name.startswith(f"{prefix}_")):
        entry = given[name]
        if name in REFUSED and entry not in REFUSED[name][0]:
            raise UsageError(f"--{name} {entry} is not here: {REFUSED[name][1]}")
        if name in CACHES and CACHES[name] not in given:
            raise UsageError(
                f"--{name}: a .pt file can run code and is never opened; give its prompts as text, --{CACHES[name]}"
                " FILE: they are encoded before the first step, once, and cached"
            )
        if name.startswith("zimage_vae_lora_") and value["zimage_use_vae_lora"]:
            own = name.replace("_vae_", "_")
            if entry != value[own]:
                raise UsageError(
                    f"--{name} {entry} is not here: network and decoder share one rank, alpha and list of targets; give"
                    f" --{own} the same, or leave it out"
                )


def _comments(given: dict[str, Any], backend: str) -> Iterable[str]:
    """What differs, for every flag that was given, and for those that always differ."""
    always = {"promptnorm", "max_batch"} if backend == "infinity" else {"promptnorm"}
    for name, flag in FLAGS.items():
        if name in given or name in always:
            owner = name.split("_")[0]
            if owner in PREFIX.values() and owner != PREFIX[backend]:
                yield f"# --{name}: not read by backend {backend}."
            elif flag.note:
                yield f"# --{name}: {flag.note}{'' if flag.changes else ' (no result changes)'}."
    if backend == "sana_one_step":
        yield (
            '# Their one-step sampler applies the coefficients of a second step; kind = "sana-upstream-one-step"'
            " repeats it."
        )
    if backend.startswith("sana"):
        yield "# Their prompts are encoded without the pipeline's instruction, which complex_human_instruction adds."
    yield "# Their seed is the number of the epoch; here run.seed decides everything."


def _run(value: dict[str, Any]) -> dict[str, Any]:
    backend = value["backend"]
    batch = {"zimage": value["zimage_micro_batch"], "infinity": value["max_batch"] or value["inf_micro_batch"]}
    run = {
        "name": value["run_name"] or f"{backend}-eggroll",
        "steps": value["num_epochs"],
        "out": value["save_root"],
        "device": value["device"],
        "micro_batch": batch.get(backend) or 16,
        "checkpoint_every": value["save_every"],
        "matmul_precision": value["matmul_precision"],
    }
    further = {"deterministic": value["deterministic"]}
    further["trackers"] = ["wandb"] if value["wandb_project"] != FLAGS["wandb_project"].default else []
    return run | {key: entry for key, entry in further.items() if entry}


def _compilation(backend: str, given: dict[str, Any]) -> dict[str, Any]:
    """Keys of a network that compiles, which it does where the command line speaks of it."""
    flag = {"zimage": "zimage_compile_transformer", "sana_one_step": "torch_compile", "sana_pipeline": "torch_compile"}
    if not given.get(flag.get(backend, ""), False):
        return {}
    table = {"compile": given.get("compile_mode", "default" if backend == "zimage" else "max-autotune")}
    return table | ({"compile_fullgraph": True} if given.get("compile_fullgraph") else {})


def _backend(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    backend = value["backend"]
    prefix = PREFIX[backend]
    lora = {
        "rank": value[f"{prefix}_lora_r"],
        "alpha": float(value[f"{prefix}_lora_alpha"]),
        "targets": value[f"{prefix}_lora_targets"].split(","),
    }
    build = {"sana": _sana, "var": _var, "zimage": _zimage, "inf": _infinity}[prefix]
    table, sampler = build(value)
    tables = {"backend": table, "backend.lora": lora}
    return tables | ({"sampler": sampler} if sampler else {})


def _size(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


def _sana(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    one_step = value["backend"] == "sana_one_step"
    table = {
        "kind": "sana-sprint",
        "checkpoint": value["sana_model"],
        "dtype": "float32" if one_step else "float16",
        "image_size": _size(32 * value["sana_height_latent"], 32 * value["sana_width_latent"]) if one_step else 1024,
        "guidance_scale": value["sana_guidance_scale"],
        "complex_human_instruction": False,
        "text_micro_batch": value["sana_encode_bs"],
    }
    return table, {"kind": "one-step"} if one_step else {"kind": "scm", "steps": 2}


def _var(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    kept = value["var_ckpt_dir"] == FLAGS["var_ckpt_dir"].default
    return {
        "kind": "var",
        "checkpoint": "FoundationVision/var" if kept else value["var_ckpt_dir"],
        "depth": value["var_depth"],
        "dtype": "float16",
        "guidance_scale": value["var_guidance_scale"],
        "top_k": 900,
        "top_p": 0.95,
    }, {}


def _zimage(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    table = {
        "kind": "z-image",
        "checkpoint": value["zimage_model"],
        "dtype": value["zimage_dtype"],
        "image_size": _size(value["zimage_height"], value["zimage_width"]),
        "guidance_scale": value["zimage_guidance_scale"],
    }
    if value["zimage_use_gguf"]:
        path = value["zimage_gguf_local_path"]
        folder, _, file = path.rpartition("/")
        table["network_checkpoint"] = (folder or ".") if path else value["zimage_gguf_repo_id"]
        table["network_file"] = file or value["zimage_gguf_filename"]
    if value["zimage_use_vae_lora"]:
        table["lora_decoder"] = True
    return table, {"kind": "euler", "steps": value["zimage_steps"]}


def _infinity(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    variant, resolution = VARIANTS[value["inf_variant"]]
    if value["inf_cfg_insertion_layer"] > 0:
        raise UsageError(
            "--inf_cfg_insertion_layer above 0, on probabilities, guides nothing there: give --inf_cfg_list 1 for that"
        )
    return {
        "kind": "infinity",
        "checkpoint": "FoundationVision/Infinity",
        "variant": variant,
        "resolution": resolution,
        "dtype": "bfloat16" if value["inf_bf16"] else "float32",
        "text_encoder": value["inf_text_encoder_ckpt"],
        "text_micro_batch": value["inf_encode_bs"],
        "aspect_ratio": value["inf_h_div_w_template"],
        "guidance_scale": _numbers("inf_cfg_list", value["inf_cfg_list"]),
        "cfg_insertion_layer": value["inf_cfg_insertion_layer"],
        "tau": _numbers("inf_tau_list", value["inf_tau_list"]),
        "top_k": int(value["inf_top_k"] == 1),
        "top_p": value["inf_top_p"],
        "positive_prompt": bool(value["inf_enable_positive_prompt"]),
    }, {}


def _numbers(name: str, text: str) -> float | list[float]:
    try:
        numbers = [float(part) for part in text.strip("[]").split(",")]
    except ValueError as error:
        raise UsageError(f"--{name} is a number or a comma-separated list of them, not '{text}'") from error
    return numbers[0] if len(numbers) == 1 else numbers


def _optimizer(value: dict[str, Any]) -> dict[str, Any]:
    table = {
        "kind": "eggroll",
        "population": value["pop_size"],
        "sigma": value["sigma"],
        "sigma_scale": "absolute",
        "learning_rate": value["lr_scale"],
        "step_rule": "upstream",
        "gain": "none",
        "shaping": "zscore",
        "schedule": "constant",
        "train": ["A", "B"],
        "noise_rank": value["egg_rank"],
        "antithetic": value["use_antithetic"],
    }
    if value["theta_max_norm"] > 0:
        table["max_norm"] = value["theta_max_norm"]
    if value["max_step_norm"] > 0:
        table["max_step_norm"] = value["max_step_norm"]
    return table


def _rewards(value: dict[str, Any]) -> dict[str, float]:
    weights = {
        "pickscore": value["w_pick"],
        "clip-aesthetic": value["w_aesthetic"],
        "clip-text": value["w_text"],
        "no-artifacts": value["w_noart"],
    }
    if not any(weights.values()):
        raise UsageError("all of --w_pick, --w_aesthetic, --w_text and --w_noart are 0: nothing would be optimised")
    return {kind: weight for kind, weight in weights.items() if weight}


def _prompts(value: dict[str, Any]) -> dict[str, Any]:
    var = value["backend"] == "var"
    file = "pkg:t2ialign_var/imagenet.txt" if var else value[f"{PREFIX[value['backend']]}_prompts_txt"]
    return {
        "file": file,
        "per_step": value["var_classes_per_gen"] if var else value["prompts_per_gen"],
        "images_per_prompt": value["batches_per_gen"],
    }


def _toml(entry: Any) -> str:
    return json.dumps(entry, ensure_ascii=False)


__all__ = ["FLAGS", "Flag", "parse", "spec_text"]
