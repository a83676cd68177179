"""Every flag of HyperscaleES_T2I's main program: its default, where it is here, and what a difference changes.

A flag with a note has no exact counterpart; the note says what differs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        default: as the program has it; its type is the flag's.
        here: our key, or "" where there is none.
        note: what differs; "" where nothing does.
        changes: whether what differs changes results.
    """

    default: bool | int | float | str
    here: str = ""
    note: str = ""
    changes: bool = False


CACHE = "texts are encoded before the first step and cached by content"
PT = "never opened, for a .pt file can run code; refused unless a file of prompts is given, to encode and cache"
LAYERS = "backend.lora.targets"
DROPOUT = "above 0 refused: members are scored without dropout, as images are drawn"
#: What cannot be had here: the values that change nothing, and what to do about any other.
REFUSED: dict[str, tuple[tuple[float | str, ...], str]] = {
    **dict.fromkeys(
        ("sana_lora_dropout", "var_lora_dropout", "zimage_lora_dropout", "zimage_vae_lora_dropout", "inf_lora_dropout"),
        ((0.0,), "members are scored without dropout, as images are drawn: leave it out"),
    ),
    "sana_dtype_latents": (
        (),
        "noise is drawn and stepped in float32, and backend.dtype is the network's alone: leave it out",
    ),
    "zimage_attention_backend": (
        ("flash", "native", "sdpa"),
        "torch's own attention chooses its kernel: give native, or leave it out",
    ),
    "inf_use_flex_attn": ((0,), "attention is torch's own, which gives the same but for rounding: leave it out"),
    "inf_text_channels": ((2048,), "the text encoder's own width is used: name the encoder by --inf_text_encoder_ckpt"),
}
#: Their caches of prompts, and the flag that names the same prompts as text.
CACHES = {
    "sana_encoded_prompts": "sana_prompts_txt",
    "zimage_encoded_prompts": "zimage_prompts_txt",
    "inf_encoded_prompts": "inf_prompts_txt",
}

FLAGS: dict[str, Flag] = {
    # the run
    "backend": Flag("infinity", "backend.kind"),
    "device": Flag("auto", "run.device"),
    "wandb_project": Flag(
        "ES-Unified", "run.trackers", 'metrics.jsonl is always written; trackers = ["wandb"] adds W&B'
    ),
    "run_name": Flag("", "run.name"),
    "save_root": Flag("es_runs_unified", "run.out"),
    "save_every": Flag(10, "run.checkpoint_every"),
    "num_epochs": Flag(1000, "run.steps"),
    # the strategy
    "pop_size": Flag(8, "optimizer.population"),
    "sigma": Flag(1e-2, "optimizer.sigma"),
    "lr_scale": Flag(1e-1, "optimizer.learning_rate"),
    "egg_rank": Flag(1, "optimizer.noise_rank"),
    "use_antithetic": Flag(True, "optimizer.antithetic"),
    "promptnorm": Flag(
        True,
        "optimizer.shaping",
        "both values are 'zscore': the z-score that follows undoes the centring by prompt and the one divisor, so"
        " fitness is the same; but with it one score that is not finite voids the whole generation, here only its"
        " member",
        True,
    ),
    "theta_max_norm": Flag(40.0, "optimizer.max_norm"),
    "max_step_norm": Flag(0.0, "optimizer.max_step_norm"),
    # rewards
    "w_aesthetic": Flag(0.0, "[[reward]] clip-aesthetic"),
    "w_text": Flag(0.0, "[[reward]] clip-text"),
    "w_noart": Flag(0.0, "[[reward]] no-artifacts"),
    "w_pick": Flag(1.0, "[[reward]] pickscore"),
    # numerics
    "tf32": Flag(
        False,
        "run.matmul_precision",
        "matmul_precision decides for products, there too, and for convolutions as well: TF32 unless it is 'highest'",
        True,
    ),
    "matmul_precision": Flag("high", "run.matmul_precision"),
    "deterministic": Flag(
        False, "run.deterministic", "of every operation; VAR has it on there whatever is given", True
    ),
    "cudnn_benchmark": Flag(False, "", "torch's own setting is left alone; rounding and speed alone", True),
    "torch_compile": Flag(
        True, "backend.compile", "of Sana and only where it is given: theirs mostly never happened, and takes minutes"
    ),
    "compile_mode": Flag("max-autotune", "backend.compile", "where compilation is asked for"),
    "compile_fullgraph": Flag(True, "backend.compile_fullgraph", "where compilation is asked for"),
    # images
    "prompts_per_gen": Flag(4, "prompts.per_step"),
    "batches_per_gen": Flag(4, "prompts.images_per_prompt"),
    "max_log_batches": Flag(1, "samples.count", "times prompts_per_gen images, at fixed prompts and noise"),
    "max_batch": Flag(2, "run.micro_batch", "images per batch; theirs repeats pictures within a prompt", True),
    # Sana Sprint
    "sana_model": Flag("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", "backend.checkpoint"),
    "sana_encoded_prompts": Flag("encoded_prompts_sana_unifed.pt", "", PT),
    "sana_guidance_scale": Flag(4.5, "backend.guidance_scale"),
    "sana_width_latent": Flag(16, "backend.image_size", "32 pixels each"),
    "sana_height_latent": Flag(16, "backend.image_size", "32 pixels each"),
    "sana_dtype_latents": Flag("float16", "", "refused: noise is drawn in float32, one generator per image", True),
    "sana_lora_r": Flag(2, "backend.lora.rank"),
    "sana_lora_alpha": Flag(8, "backend.lora.alpha"),
    "sana_lora_dropout": Flag(0.0, "", DROPOUT, True),
    "sana_lora_targets": Flag("to_q,to_k,to_v,to_out.0,linear_1,linear_2,proj_out,linear", LAYERS),
    "sana_prompts_txt": Flag("prompts_train_v3.txt", "prompts.file"),
    "sana_auto_encode": Flag(False, "", CACHE),
    "sana_encode_bs": Flag(8, "backend.text_micro_batch"),
    # VAR
    "var_depth": Flag(16, "backend.depth"),
    "var_ckpt_dir": Flag("checkpoints_var", "backend.checkpoint"),
    "var_download_if_missing": Flag(False, "", "a hub id downloads, a folder does not"),
    "var_guidance_scale": Flag(4.0, "backend.guidance_scale"),
    "var_allowed_classes": Flag("all", "prompts.file", "a prompt file with the classes' names", True),
    "var_classes_per_gen": Flag(2, "prompts.per_step"),
    "var_lora_r": Flag(4, "backend.lora.rank"),
    "var_lora_alpha": Flag(16, "backend.lora.alpha"),
    "var_lora_dropout": Flag(0.0, "", DROPOUT, True),
    "var_lora_targets": Flag(
        "mat_qkv,proj,fc1,fc2,ada_lin.1,head_nm.ada_lin.1,head",
        LAYERS,
        "their LoRA on mat_qkv has no effect on any image; here it has, or is refused",
        True,
    ),
    # Z-Image
    "zimage_model": Flag("Tongyi-MAI/Z-Image-Turbo", "backend.checkpoint"),
    "zimage_prompts_txt": Flag("untitled.txt", "prompts.file"),
    "zimage_encoded_prompts": Flag("encoded_zimage_untitledtxt_big.pt", "", PT),
    "zimage_auto_encode": Flag(False, "", CACHE),
    "zimage_width": Flag(384, "backend.image_size"),
    "zimage_height": Flag(384, "backend.image_size"),
    "zimage_steps": Flag(7, "sampler.steps"),
    "zimage_guidance_scale": Flag(0.0, "backend.guidance_scale"),
    "zimage_micro_batch": Flag(1, "run.micro_batch"),
    "zimage_dtype": Flag("bfloat16", "backend.dtype"),
    "zimage_attention_backend": Flag(
        "flash",
        "",
        "torch's, flash where that fits; refused unless flash, native or sdpa",
        True,
    ),
    "zimage_compile_transformer": Flag(False, "backend.compile"),
    "zimage_use_gguf": Flag(False, "backend.network_file"),
    "zimage_gguf_repo_id": Flag("jayn7/Z-Image-Turbo-GGUF", "backend.network_checkpoint"),
    "zimage_gguf_filename": Flag("z_image_turbo-Q3_K_S.gguf", "backend.network_file"),
    "zimage_gguf_local_dir": Flag("gguf_cache", "", "the hub's own cache"),
    "zimage_gguf_local_path": Flag("", "backend.network_checkpoint"),
    "zimage_lora_r": Flag(2, "backend.lora.rank"),
    "zimage_lora_alpha": Flag(8, "backend.lora.alpha"),
    "zimage_lora_dropout": Flag(0.0, "", DROPOUT, True),
    "zimage_lora_targets": Flag("to_q,to_k,to_v,linear,w1,w2,w3", LAYERS),
    "zimage_use_vae_lora": Flag(False, "backend.lora_decoder", "rank, alpha and targets are the network's", True),
    "zimage_vae_lora_r": Flag(2, "backend.lora.rank", "refused unless the network's", True),
    "zimage_vae_lora_alpha": Flag(8, "backend.lora.alpha", "refused unless the network's", True),
    "zimage_vae_lora_dropout": Flag(0.0, "", DROPOUT, True),
    "zimage_vae_lora_targets": Flag("to_q,to_k,to_v,to_out.0", LAYERS, "refused unless the network's", True),
    # Infinity
    "inf_variant": Flag("8b_512", "backend.variant"),
    "inf_model_path": Flag("infinity_2b_reg.pth", "backend.checkpoint", "the variant decides, as it does there"),
    "inf_vae_path": Flag("infinity_vae_d32_reg.pth", "backend.checkpoint", "the variant decides, as it does there"),
    "inf_text_encoder_ckpt": Flag("google/flan-t5-xl", "backend.text_encoder"),
    "inf_vae_type": Flag(32, "backend.variant", "the variant decides, as it does there"),
    "inf_pn": Flag("0.60M", "backend.resolution", "the variant decides, as it does there"),
    "inf_model_type": Flag("infinity_2b", "backend.variant", "the variant decides, as it does there"),
    "inf_apply_spatial_patchify": Flag(0, "backend.variant", "the variant decides, as it does there"),
    "inf_checkpoint_type": Flag("torch", "backend.variant", "the variant decides, as it does there"),
    "inf_encoded_prompts": Flag("encoded_prompts_infinity.pt", "", PT),
    "inf_h_div_w_template": Flag(1.0, "backend.aspect_ratio"),
    "inf_text_channels": Flag(2048, "", "read from the text encoder; another value is refused"),
    "inf_use_flex_attn": Flag(0, "", "1 refused: torch's own attention, rounding alone", True),
    "inf_bf16": Flag(1, "backend.dtype"),
    "inf_guidance_scale": Flag(3.0, "", "never read there; inf_cfg_list acts"),
    "inf_prompts_txt": Flag("untitled1.txt", "prompts.file"),
    "inf_auto_encode": Flag(True, "", CACHE),
    "inf_encode_bs": Flag(16, "backend.text_micro_batch"),
    "inf_drop_text_encoder_after_encode": Flag(True, "", "always"),
    "inf_cfg_list": Flag("3", "backend.guidance_scale"),
    "inf_tau_list": Flag("1", "backend.tau"),
    "inf_cfg_insertion_layer": Flag(0, "backend.cfg_insertion_layer"),
    "inf_sampling_per_bits": Flag(1, "", "the model never reads it"),
    "inf_enable_positive_prompt": Flag(0, "backend.positive_prompt"),
    "inf_top_k": Flag(900, "backend.top_k", "a bit has two values, so 900 keeps both, which is 0 here; 1 is greedy"),
    "inf_top_p": Flag(0.97, "backend.top_p"),
    "inf_micro_batch": Flag(0, "run.micro_batch", "max_batch overrides it there"),
    "inf_lora_r": Flag(2, "backend.lora.rank"),
    "inf_lora_alpha": Flag(8, "backend.lora.alpha"),
    "inf_lora_dropout": Flag(0.0, "", DROPOUT, True),
    "inf_lora_targets": Flag("fc1", LAYERS),
}
