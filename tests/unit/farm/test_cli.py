"""The command line: every verb has help with an example and is documented; errors are one line."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from farm import cli, exits
from farm.cli import ROUTER_VERBS, VERBS, main, parser_of
from tests import models

OPERATIONS = (Path(__file__).resolve().parents[3] / "docs" / "OPERATIONS.md").read_text()
MODEL = '[models.wdbc]\npath = "wdbc.onnx"\n'


def verbs_of(parser):
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == exits.OK
    told = capsys.readouterr()
    assert "example:\n  farm " + verb in told.out
    assert not told.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_is_a_command_that_parses(verb):
    parser = parser_of()
    epilog = verbs_of(parser)[verb].epilog
    for line in epilog.splitlines()[1:]:
        for command in re.split(r" && | & ", line.strip()):
            assert parser.parse_args(command.split()[1:]).run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented_with_its_flags(verb):
    row = re.search(rf"^\| `farm {verb}` \| (.+) \|$", OPERATIONS, re.MULTILINE)
    assert row
    flags = {flag for action in verbs_of(parser_of())[verb]._actions for flag in action.option_strings}
    for flag in flags - {"-h", "--help", "--runtime-dir", "--input"}:
        assert flag in OPERATIONS, f"{verb} {flag}"


def test_exit_codes_are_documented_and_in_the_help(capsys):
    assert main(["--help"]) == exits.OK
    printed = capsys.readouterr().out
    for code, meaning in exits.MEANINGS.items():
        assert f"| {code} | {meaning} |" in OPERATIONS
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", printed, re.MULTILINE)


def test_the_routers_command_line_is_the_same_code():
    theirs, ours = verbs_of(parser_of("python -m router", ROUTER_VERBS)), verbs_of(parser_of())
    assert set(theirs) == {"status", "scale", "drain"}
    for name, parser in theirs.items():
        assert parser.get_default("run") is ours[name].get_default("run")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], exits.USAGE, "required: VERB"),
        (["srve"], exits.USAGE, "invalid choice: 'srve'"),
        (["scale", "wdbc"], exits.USAGE, "it must be MODEL=N, such as wdbc=4"),
        (["scale", "wdbc=-1"], exits.USAGE, "it must be MODEL=N"),
        (["scale", "wdbc=99999"], exits.USAGE, "N from 0 to 1024"),
        (["infer", "wdbc", "--input", "x"], exits.USAGE, "it must be NAME=FILE.npy"),
        (["infer", "wdbc", "--deadline-ms", "-3"], exits.USAGE, "milliseconds above 0"),
        (["wait", "--timeout", "soon"], exits.USAGE, "invalid number of seconds value: 'soon'"),
        (["config"], exits.USAGE, "required: check"),
        (["config", "check", "nothing.toml"], exits.USAGE, "nothing.toml: No such file or directory"),
        (["serve", "nothing.onnx"], exits.USAGE, "[models.nothing] path = "),
        (["serve", "x.onnx", "--config", "x.toml"], exits.USAGE, "a model or --config, not both"),
        (["serve", "x.onnx", "--workers", "-1"], exits.USAGE, "workers = -1: it must be a whole number from 0"),
        (["status"], exits.NO_FARM, "no farm was found; tried "),
        (["stop"], exits.NO_FARM, "no farm was found; tried "),
        (["drain"], exits.NO_FARM, "Start one with `farm serve`"),
        (["scale", "wdbc=3"], exits.NO_FARM, "--runtime-dir or $FARM_RUNTIME_DIR"),
        (["infer", "wdbc"], exits.NO_FARM, "no farm was found"),
        (["wait", "--timeout", "0.01"], exits.NOT_READY, "no farm was ready within 0.01 s; looked at "),
    ],
)
def test_an_error_is_told_without_a_traceback_and_has_its_code(arguments, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FARM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    told = capsys.readouterr()
    assert said in told.err
    assert "Traceback" not in told.err
    if not told.err.startswith("usage: "):
        assert told.err.startswith("farm: ") and told.err.count("\n") == 1
    assert not told.out
    assert not (tmp_path / "run").exists()


def test_config_check_prints_every_option_and_the_rules(capsys, tmp_path, monkeypatch):
    models.save(
        tmp_path / "wdbc.onnx",
        [models.node("Identity", ["x"], ["y"])],
        [("x", "float32", ("N",))],
        [("y", "float32", ("N",))],
    )
    path = tmp_path / "farm.toml"
    rule = "[[models.wdbc.rules.rules]]\nname = 'all'\nanswer = {y = 1.0}\ndecision = 'refer'\n"
    path.write_text(MODEL + "workers = 7\n" + rule)
    assert main(["config", "check", str(path)]) == exits.OK
    printed = capsys.readouterr().out
    assert "\nworkers = 7\n" in printed and "\nbeat_timeout_ms = 2000.0\n" in printed
    assert '#   1. all: always: {"y":1.0}, decision "refer" (' in printed


def test_config_check_refuses_a_rule_that_does_not_compile(capsys, tmp_path):
    (tmp_path / "wdbc.onnx").write_bytes(b"not looked into")
    path = tmp_path / "farm.toml"
    path.write_text(MODEL + "[[models.wdbc.rules.rules]]\nname = 'bad'\nwhen = 'x >'\nanswer = {y = 1.0}\n")
    assert main(["config", "check", str(path)]) == exits.USAGE
    told = capsys.readouterr().err
    assert told.startswith(f"farm: {path}: [models.wdbc.rules] rule 'bad': ")
    assert told.count("\n") == 1


def test_serve_without_the_server_extra_says_what_to_install(capsys, tmp_path, monkeypatch):
    from farm.supervisor import entry

    monkeypatch.setattr(entry, "SERVER_PACKAGES", ("msgspec", "a_package_nobody_has"))
    assert main(["serve", "--runtime-dir", str(tmp_path)]) == exits.USAGE
    assert "(a_package_nobody_has): pip install 'shmfarm[server]'" in capsys.readouterr().err


def test_ctrl_c_leaves_no_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("farm.cli.commands.wait.run", interrupted)
    assert main(["wait"]) == exits.INTERRUPTED
    assert not capsys.readouterr().err


def test_version_is_told(capsys):
    assert main(["--version"]) == exits.OK
    assert capsys.readouterr().out.startswith("shmfarm")


def test_every_verb_has_a_module_of_its_own():
    modules = {path.stem for path in (Path(cli.__file__).parent / "commands").glob("[a-z]*.py")}
    assert modules == set(VERBS)
