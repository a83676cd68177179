"""Exit codes of every command: 0 done; 1 failed; 2 the user's input; 75 try again later; 130 stopped."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from t2ialign import cli
from t2ialign.errors import ExportError, PartError, SpecError, Unavailable, UsageError, blaming
from t2ialign.run.failures import Interrupted, Stopped
from t2ialign.run.finish import Unfinished
from t2ialign.storage.states import Damaged

COMMANDS = [command.name for command in cli.app.registered_commands]
#: Arguments that name what is not there.
ABSENT = {
    "run": ["absent.toml"],
    "resume": ["absent"],
    "validate": ["absent.toml"],
    "estimate": ["absent.toml"],
    "init": ["--backend", "absent", "--optimizer", "absent", "--reward", "absent"],
    "sample": ["absent.toml"],
    "eval": ["absent"],
    "export": ["absent", "--out", "new"],
    "report": ["absent"],
    "compare": ["absent", "absent-too"],
    "score": ["absent", "--reward", "toy-redness"],
    "bench": ["absent", "absent.toml"],
    "push": ["absent"],
    "sweep": ["absent.toml"],
    "new-plugin": ["absent", "absent"],
    "check": ["absent", "absent"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_user_gave_wrongly_ends_with_2(toy_registry, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for arguments in filter(None, [["--no-such-option"], ABSENT.get(command)]):
        done = CliRunner().invoke(cli.app, [command, *arguments])
        code = getattr(done.exception, "exit_code", done.exit_code)
        assert code == 2, (arguments, done.output, done.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_0(command):
    assert CliRunner().invoke(cli.app, [command, "--help"]).exit_code == 0


def blamed(error: Exception) -> Exception:
    try:
        with blaming("reward 'x' (mine 1.0)"):
            raise error
    except Exception as same:
        return same


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (SpecError("spec.toml", []), 2),
        (PartError("x"), 1),
        (ExportError("x"), 1),
        (Stopped("x"), 1),
        (Damaged("x"), 1),
        (Unfinished("x"), 1),
        (blamed(ValueError("x")), 1),
        (Unavailable("x"), 75),
        (Interrupted("x"), 130),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
@pytest.mark.parametrize("command", ["run", "resume", "sample", "eval", "export", "score", "bench", "sweep"])
def test_whatever_ends_a_command_has_its_code_and_one_message(monkeypatch, capsys, command, error, code):
    def end() -> None:
        raise error

    monkeypatch.setattr(cli, "app", end)
    monkeypatch.setattr(sys, "argv", ["t2ialign", command])
    monkeypatch.setattr(cli.signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.count("error:") == (not isinstance(error, KeyboardInterrupt))
