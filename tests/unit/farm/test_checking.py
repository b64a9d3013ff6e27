"""`farm config check` against the model itself: what does not fit is refused by file, section and name."""

from __future__ import annotations

import re
import sys

import pytest

from farm import exits
from farm.cli import main
from tests import models

RULE = "[[models.m.rules.rules]]\nname = 'r'\n"
FEATURES = "[models.m.rules.features]\nx = ['a', 'b', 'c']\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`m.onnx`: x float32[N, 3] to y the same; `broken.onnx`: none."""
    path = tmp_path_factory.mktemp("models")
    models.identity(path / "m.onnx", "float32")
    models.broken(path / "broken.onnx")
    return path


def check(folder, text, capsys, model="m.onnx"):
    path = folder / "farm.toml"
    path.write_text(f'[models.m]\npath = "{model}"\n{text}')
    code = main(["config", "check", str(path)])
    told = capsys.readouterr()
    return code, told.out, told.err.removeprefix(f"farm: {path}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RULE + "answer = {y = 1.0}\nwhen = 'a > '\n", "[models.m.rules] rule 'r': Failed to parse expression"),
        (
            RULE + "answer = {y = 1.0}\nwhen = '[1].all(i, i > a)'\n",
            "[models.m.rules] rule 'r': the macro 'all' at position 4 walks lists",
        ),
        # A raw string ends at its backslash, and one in three quotes holds single ones.
        (
            FEATURES + RULE + """answer = {y = 1.0}\nwhen = '''r"\\" == "a" || [1].all(a, a > 0) || "b" == "c"'''\n""",
            "[models.m.rules] rule 'r': the macro 'all' at position 19 walks lists",
        ),
        (
            FEATURES
            + RULE
            + 'answer = {y = 1.0}\nwhen = """\\"\\"\\"a\\"b\\"\\"\\" == \\"c\\" || [1].all(a, a > 0)"""\n',
            "[models.m.rules] rule 'r': the macro 'all' at position 24 walks lists",
        ),
        (
            FEATURES + RULE + "answer = {y = 1.0}\nwhen = 'a == 17.0 && string(b).matches(\"(a{1,100}){1,100}\")'\n",
            "[models.m.rules] rule 'r': 'matches' compiles its expression for every row",
        ),
        (
            FEATURES + RULE + "answer = {y = 1.0}\nwhen = 'd > 1.0'\n",
            "[models.m.rules] rule 'r': 'd' is no feature; known are a, b, c",
        ),
        (
            "[models.m.rules.features]\nx = ['a', 'b']\n" + RULE + "answer = {y = 1.0}\n",
            "[models.m.rules] features of input 'x': 2 names, but x: float32[N, 3] has 3 columns",
        ),
        (
            "[models.m.rules.features]\nz = ['a']\n" + RULE + "answer = {y = 1.0}\n",
            "[models.m.rules] features of input 'z': the model has no such input; it has x",
        ),
        (RULE + "answer = {z = 1.0}\n", "[models.m.rules] rule 'r': the answer lacks output 'y'"),
        (
            RULE + "answer = {y = [1.0, 2.0]}\n",
            "[models.m.rules] rule 'r': output 'y' takes 3 values a row, the answer",
        ),
        (
            RULE + "answer = {y = 1.0}\n[models.m.rules.agree.z]\nthreshold = 1.0\n",
            "[models.m.rules] agree.z: the model has no such output; it has y",
        ),
        (
            "[models.m.constant]\nz = 1.0\n",
            "[models.m.constant] the answer lacks output 'y'; expected y: float32[N, 3]",
        ),
        ("[models.m.constant]\ny = 'much'\n", "[models.m.constant] output 'y' is float32, and the answer is not"),
        ("[models.m.guard]\nranges = {z = [0.0, 1.0]}\n", "[models.m.guard] ranges.z: the model has no such output"),
        (
            "[models.m.on]\nguard = ['previous_version']\n",
            "[models.m.on] guard: 'previous_version' cannot be had: a farm serves one version of a model",
        ),
        ("[models.m.on]\ntimeout = ['constant']\n", "[models.m.on] timeout: 'constant' needs an answer; add a section"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_farm_is_started(folder, text, said, capsys):
    code, out, err = check(folder, text, capsys)
    assert (code, out) == (exits.USAGE, "")
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_rules_that_cost_too_much_are_refused_with_the_figure(folder, capsys):
    rules = "".join(
        f"[[models.m.rules.rules]]\nname = 'r{n}'\nwhen = 'a > 1.0'\nanswer = {{y = 1.0}}\n" for n in range(99)
    )
    code, _, err = check(folder, FEATURES + rules, capsys)
    assert code == exits.USAGE
    assert re.match(
        r"\[models\.m\.rules\] the rules take [\d.]+ us for a row, at most 50 are allowed; 'r\d+' takes", err
    )


def test_a_model_that_cannot_be_loaded_is_told_when_something_has_to_fit_it(folder, capsys):
    code, _, err = check(folder, "[models.m.guard]\n", capsys, model="broken.onnx")
    assert code == exits.USAGE
    assert err.startswith("[models.m] path = ") and "it cannot be served" in err


def test_the_whole_table_is_printed_with_defaults_and_what_it_rests_on(folder, capsys):
    code, out, _ = check(
        folder,
        "[models.m.on]\ntimeout = ['last_good', 'rules', 'constant']\n[models.m.constant]\ny = 0.5\n"
        "[models.m.guard]\nranges = {y = [0.0, inf]}\n" + FEATURES + RULE + "when = 'a > 1.0'\nanswer = {y = 1.0}\n",
        capsys,
    )
    assert code == exits.OK
    rows = re.findall(r"^#   (\w+) {2,}(.+)$", out, re.MULTILINE)
    assert rows == [
        ("timeout", "last_good, rules, constant, reject"),
        ("predicted_late", "rules, reject"),
        ("shed", "reject"),
        ("no_worker", "rules, reject"),
        ("worker_died", "retry, rules, reject"),
        ("model_error", "reject"),
        ("guard", "rules, reject"),
    ]
    assert re.search(r"^# rules, for at most 1024 rows a turn of the router, [\d.]+ us a row;", out, re.MULTILINE)
    assert re.search(r'^#   1\. r: when a > 1\.0: \{"y":1\.0\} \([\d.]+ us\)$', out, re.MULTILINE)
    assert '# constant: {"y":0.5}\n' in out
    assert "# last_good: up to 60000 ms old, by the key of the request; at most 10000 keys and 64 MiB\n" in out
    assert "# guard: finite, y from 0 to inf\n" in out


@pytest.mark.parametrize("missing", ["onnxruntime", "cel"])
def test_without_the_server_extra_the_check_says_what_it_could_not_do(folder, missing, capsys, monkeypatch):
    for module in ("workers.session", "router.rules", "cel.cel"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    when = 'when = "a > 1.0"\n' if missing == "cel" else ""
    code, out, err = check(folder, RULE + when + "answer = {z = 1.0}\n", capsys)
    if missing == "cel":
        assert code == exits.USAGE and "pip install 'shmfarm[server]'" in err
    else:
        assert code == exits.OK
        assert (
            "# not checked against the model, since onnxruntime is not installed: pip install 'shmfarm[server]'" in out
        )
