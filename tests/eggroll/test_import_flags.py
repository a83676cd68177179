"""Command lines of HyperscaleES_T2I become specs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from t2ialign import SpecError, UsageError
from t2ialign.cli import app
from t2ialign.spec.parse import load
from t2ialign_eggroll.hyperscale import BACKENDS, spec_text
from t2ialign_eggroll.hyperscale_flags import FLAGS


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backends_spec_is_valid(backend, tmp_path):
    prompts = "prompts_train_v3.txt" if backend.startswith("sana") else "untitled.txt"
    for name in (prompts, "untitled1.txt"):
        (tmp_path / name).write_text("a cat\na dog\na fox\na hen\n")
    file = tmp_path / "spec.toml"
    file.write_text(spec_text(f"python main.py --backend {backend}"))
    spec = load(file)
    optimizer = spec.optimizer.config
    assert (optimizer.population, optimizer.sigma, optimizer.learning_rate) == (8, 1e-2, 1e-1)
    assert (optimizer.step_rule, optimizer.shaping, optimizer.sigma_scale) == ("upstream", "zscore", "absolute")
    assert optimizer.max_norm == 40
    assert spec.run.steps == 1000


def test_flags_arrive_in_every_form():
    text = spec_text(
        "python main.py --backend=zimage --pop_size 128 --sigma 5e-3 --lr_scale=1.0 --use_antithetic no --egg_rank 2"
        " --theta_max_norm 0 --max_step_norm 2 --w_pick 0.5 --w_text 2 --zimage_use_gguf --zimage_steps 5"
        " --zimage_lora_targets to_q,to_k --zimage_compile_transformer 1 --prompts_per_gen 6 --batches_per_gen 2"
        " --zimage_width 512"
    )
    spec = tomllib.loads(text)
    assert spec["optimizer"]["population"] == 128
    assert spec["optimizer"]["sigma"] == 5e-3
    assert spec["optimizer"]["antithetic"] is False
    assert spec["optimizer"]["noise_rank"] == 2
    assert spec["optimizer"]["max_step_norm"] == 2
    assert "max_norm" not in spec["optimizer"]
    assert {r["kind"]: r["weight"] for r in spec["reward"]} == {"pickscore": 0.5, "clip-text": 2}
    assert spec["sampler"] == {"kind": "euler", "steps": 5}
    assert spec["backend"]["network_file"] == "z_image_turbo-Q3_K_S.gguf"
    assert spec["backend"]["compile"] == "default"
    assert spec["backend"]["image_size"] == [384, 512]
    assert spec["backend"]["lora"]["targets"] == ["to_q", "to_k"]
    assert (spec["prompts"]["per_step"], spec["prompts"]["images_per_prompt"]) == (6, 2)


def test_numerics_compilation_and_guidance_arrive():
    sana = tomllib.loads(
        spec_text(
            "main.py --backend sana_one_step --torch_compile --compile_fullgraph true --deterministic 1 --save_every 0"
            " --matmul_precision highest --sana_encode_bs 2"
        )
    )
    assert (sana["backend"]["compile"], sana["backend"]["compile_fullgraph"]) == ("max-autotune", True)
    assert sana["backend"]["text_micro_batch"] == 2
    run = sana["run"]
    assert (run["matmul_precision"], run["deterministic"], run["checkpoint_every"]) == ("highest", True, 0)
    infinity = tomllib.loads(spec_text("main.py --inf_cfg_insertion_layer -5 --compile_mode default"))
    assert (infinity["backend"]["cfg_insertion_layer"], infinity["backend"]["text_micro_batch"]) == (-5, 16)
    assert "compile" not in infinity["backend"]
    assert "compile" not in tomllib.loads(spec_text("main.py --backend sana_one_step"))["backend"]


def test_what_other_backends_would_refuse_is_not_read():
    text = spec_text("main.py --backend var --sana_lora_dropout 0.1 --inf_use_flex_attn 1 --max_log_batches 3")
    assert "# --inf_use_flex_attn: not read by backend var." in text
    assert tomllib.loads(text)["samples"]["count"] == 6


def test_a_prompt_cache_is_left_aside_where_the_texts_are_given():
    text = spec_text("main.py --backend sana_one_step --sana_encoded_prompts a.pt --sana_prompts_txt a.txt")
    assert "# --sana_encoded_prompts: never opened" in text
    assert tomllib.loads(text)["prompts"]["file"] == "a.txt"


def test_sizes_need_not_be_square():
    sana = "main.py --backend sana_one_step --sana_width_latent 24 --sana_height_latent 16"
    assert tomllib.loads(spec_text(sana))["backend"]["image_size"] == [512, 768]


def test_what_differs_is_a_comment():
    text = spec_text(
        "main.py --backend sana_one_step --promptnorm true --tf32 true --sana_lora_dropout 0 --inf_top_k 3"
    )
    assert "# --promptnorm: both values are 'zscore'" in text
    assert "# --tf32: " in text
    assert "# --sana_lora_dropout: " in text
    assert "# --inf_top_k: not read by backend sana_one_step." in text
    assert "sana-upstream-one-step" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("main.py --popsize 3", "no flag '--popsize', did you mean '--pop_size'"),
        ("main.py --backend flux", "--backend is one of"),
        ("main.py --pop_size many", "--pop_size is a whole number, not 'many'"),
        ("main.py --sigma nan", "--sigma is a number"),
        ("main.py --promptnorm maybe", "true or false"),
        ("main.py --sigma", "needs a value"),
        ("main.py --sigma 1 stray", "no flag 'stray'"),
        ("main.py --run_name 'open", "cannot be read"),
        ("main.py --inf_cfg_list 3,x", "comma-separated"),
        ("main.py --w_pick 0", "nothing would be optimised"),
        ("main.py --inf_cfg_insertion_layer 1", "guides nothing there"),
        ("main.py --backend sana_one_step --sana_lora_dropout 0.1", "--sana_lora_dropout 0.1 .* without dropout"),
        ("main.py --backend sana_one_step --sana_dtype_latents bfloat16", "--sana_dtype_latents bfloat16 .* float32"),
        ("main.py --backend zimage --zimage_attention_backend sage", "--zimage_attention_backend sage .* native"),
        ("main.py --backend zimage --zimage_encoded_prompts a.pt", "never opened; .* --zimage_prompts_txt FILE"),
        ("main.py --backend zimage --zimage_use_vae_lora --zimage_vae_lora_r 4", "--zimage_lora_r the same"),
        ("main.py --inf_use_flex_attn 1", "--inf_use_flex_attn 1 .* leave it out"),
        ("main.py --inf_text_channels 768", "--inf_text_channels 768 .* --inf_text_encoder_ckpt"),
        ("main.py --compile_mode fastest", "--compile_mode is one of default, reduce-overhead, max-autotune"),
    ],
)
def test_mistakes_are_named(command, message):
    with pytest.raises(UsageError, match=message):
        spec_text(command)


def test_the_command_prints_and_refuses_without_torch():
    code = (
        "import sys; from t2ialign.cli import app; app(['import-flags', 'python main.py --backend var'],"
        " standalone_mode=False); assert 'torch' not in sys.modules"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert tomllib.loads(printed)["backend"]["kind"] == "var"
    command = [sys.executable, "-m", "t2ialign", "import-flags", "main.py --nonsense 1"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "--nonsense" in failed.stderr
    assert "Traceback" not in failed.stderr
    refused = CliRunner().invoke(app, ["import-flags", "main.py", "--optimizer", "dav"])
    assert isinstance(refused.exception, UsageError)
    assert "these do: eggroll" in str(refused.exception)


def test_the_porting_page_lists_every_flag_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "porting.md").read_text(encoding="utf-8")
    for name, flag in FLAGS.items():
        changes = ("yes" if flag.changes else "no") if flag.note else ""
        default = str(flag.default).lower() if isinstance(flag.default, bool) else str(flag.default)
        here = f"`{flag.here}`" if flag.here else ""
        assert f"| `{name}` | {default} | {here} | {flag.note} | {changes} |" in page, name
    assert re.findall(r"^\| `(\w+)`", page.split("## From HyperscaleES_T2I")[1], re.MULTILINE) == list(FLAGS)


def test_a_wrong_key_of_a_backend_that_samples_itself_is_the_only_problem(tmp_path):
    (tmp_path / "untitled1.txt").write_text("a cat\n")
    file = tmp_path / "spec.toml"
    file.write_text(spec_text("main.py --backend infinity --prompts_per_gen 1").replace("top_p", "topp"))
    with pytest.raises(SpecError) as caught:
        load(file)
    assert [problem.key for problem in caught.value.problems] == ["backend.topp"]
