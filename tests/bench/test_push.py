"""Cards with results, and what a push sends, against a server on this machine."""

from __future__ import annotations

import shutil
import tomllib

import pytest
from bench.hub_server import serving
from huggingface_hub import HfApi, ModelCard
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.errors import UsageError
from t2ialign.publish import card
from t2ialign.publish.folder import make
from t2ialign.publish.hub import push
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs


@pytest.fixture
def run(toy_spec):
    return runner.start(specs.load(toy_spec()), Display(quiet=True))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as found:
        yield found


def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_a_token_of_nobody")


def test_the_card_is_complete_once_the_run_is(run):
    text = (run.path / "export" / "README.md").read_text()
    read = ModelCard(text)
    assert read.data.base_model == "some/model"
    assert read.data.base_model_relation == "adapter"
    assert (read.data.license, read.data.license_link) == ("other", "https://huggingface.co/some/model")
    assert {"lora", "text-to-image", "t2ialign"} <= set(read.data.tags)
    means = run.summary()["variants"]
    found = {(result.metric_type, result.metric_name): result.metric_value for result in read.data.eval_results}
    assert found == {
        ("toy-redness", f"toy-redness, {v}"): pytest.approx(means[v]["toy-redness"]["mean"], abs=1e-6)
        for v in ("base", "tuned")
    }
    for entry in read.data.widget:
        assert (run.path / "export" / entry["output"]["url"]).is_file()
        assert entry["text"] in ("red", "green", "blue", "black", "white")
    assert "## Results" in text
    assert "| toy-redness |" in text
    card.complete(run)
    assert (run.path / "export" / "README.md").read_text() == text, "completing twice changes nothing"


def test_texts_that_yaml_could_take_for_something_else_come_back_as_they_were():
    prompts = ["1e3", "a red fox: on snow # no comment", "no", "'q'", '"x"', "0x1F", "null", "çé\nb", "- a", "12_000"]
    head, body = card.split(card.joined({"widget": [{"text": text} for text in prompts]}, "body"))
    assert [entry["text"] for entry in head["widget"]] == prompts
    assert body.strip() == "body"
    assert "'1e3'" in card.joined({"text": "1e3"}, "")  # bare, YAML 1.2 would read a number


def test_a_push_is_private_lists_what_it_sends_and_names_no_place_of_the_machine(run, hub, tmp_path):
    folder = run.path / "push"
    listed = {file.as_posix() for file in make(run, folder)}
    assert {"README.md", "pytorch_lora_weights.safetensors", "spec.toml", "evaluation.json"} <= listed
    assert not [name for name in listed if name.startswith(("prompts/", "checkpoints/")) or "environment" in name]
    assert push(folder, "me/red-lora", api=api(hub)) == f"{hub.url}/me/red-lora"
    assert hub.private == {"me/red-lora": True}
    assert hub.commits == 1
    assert set(hub.files) == listed
    assert not [name for name, content in hub.files.items() if str(tmp_path).encode() in content]
    assert tomllib.loads(hub.files["spec.toml"].decode())["optimizer"]["kind"] == "toy-search"


def test_the_licence_of_the_base_is_looked_up_where_the_card_only_links_to_it(run, hub):
    hub.cards["some/model"] = {"license": "creativeml-openrail-m"}
    folder = run.path / "push"
    make(run, folder)
    push(folder, "me/lora", api=api(hub))
    assert ModelCard(hub.files["README.md"].decode()).data.license == "creativeml-openrail-m"
    make(run, folder, licence="mit")
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_a_public_repository_is_not_taken_for_a_private_one(run, hub):
    hub.private["me/lora"] = False
    make(run, run.path / "push")
    with pytest.raises(UsageError, match=r"is a public repository: push there with --public"):
        push(run.path / "push", "me/lora", api=api(hub))
    assert hub.files == {}
    push(run.path / "push", "me/lora", public=True, api=api(hub))
    assert hub.commits == 1


@pytest.mark.parametrize(
    ("change", "repo", "words"),
    [
        ({"refuses": 401}, "me/lora", "hf auth login"),
        ({"refuses": 403}, "me/lora", "may not write"),
        ({"wrong_card": '"license" must be one of'}, "me/lora", "refuses the card"),
        ({}, "me/-lora-", "--repo me/-lora-"),
    ],
)
def test_what_goes_wrong_is_one_line(run, hub, change, repo, words):
    vars(hub).update(change)
    make(run, run.path / "push")
    with pytest.raises(UsageError, match=words) as caught:
        push(run.path / "push", repo, api=api(hub))
    assert "Traceback" not in str(caught.value)
    assert hub.files == {}


def test_the_command_asks_and_a_dry_run_sends_nothing(run, hub, monkeypatch):
    monkeypatch.setattr("t2ialign.publish.hub.push", lambda *_: pytest.fail("nothing may be sent"))
    done = CliRunner().invoke(app, ["push", str(run.path), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "private repository spec" in done.output
    assert "README.md" in done.output
    refused = CliRunner().invoke(app, ["push", str(run.path)], input="n\n")
    assert isinstance(refused.exception, UsageError)


def test_nothing_unchecked_and_nothing_unfinished_is_pushed(run):
    (run.path / "export" / "UNCHECKED.txt").write_text("The check found these files wrong: zero")
    with pytest.raises(UsageError, match="found these files wrong"):
        make(run, run.path / "push")
    shutil.rmtree(run.path / "export")
    with pytest.raises(UsageError, match="no export yet"):
        make(run, run.path / "push")
