"""The configuration: what is refused and how it is said, and that file, structs and documents agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from farm import config as configuration
from farm.errors import ConfigError
from farm.strict import allowed, show
from router import fallback
from router.config import (
    AgreeConfig,
    LastGoodConfig,
    ModelConfig,
    OnConfig,
    RouterConfig,
    RuleConfig,
    RulesConfig,
)
from workers.config import GuardConfig, SessionConfig, WorkerConfig

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "configs" / "farm.toml"
KINDS = {
    "[farm]": configuration.FarmSection,
    "[arena]": configuration.ArenaSection,
    "[router]": configuration.RouterSection,
    "[models.NAME]": configuration.ModelSection,
    "[models.NAME.rules]": RulesConfig,
    "[models.NAME.rules.agree.OUTPUT]": AgreeConfig,
    "[[models.NAME.rules.rules]]": RuleConfig,
    "[models.NAME.on]": OnConfig,
    "[models.NAME.last_good]": LastGoodConfig,
    "[models.NAME.guard]": GuardConfig,
}
TABLES = {"rules", "constant", "last_good", "guard", "on"}
MODEL = '[models.wdbc]\npath = "wdbc.onnx"\n'
RULES = "[[models.wdbc.rules.rules]]\nname = 'a'\nanswer = {y = 1.0}\n"


def read(tmp_path, text):
    path = tmp_path / "farm.toml"
    path.write_text(text)
    return configuration.load(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no model; add a section such as [models.fraud]"),
        ("[models]\n", "no model; add a section"),
        ("x = [1\n", "not TOML: "),
        (MODEL + "[frm]\n", "no section [frm]; did you mean 'farm'?"),
        (MODEL + "[farm]\npni = true\n", "[farm] has no key 'pni'; did you mean 'pin'?"),
        (MODEL + "[farm]\npin = 1\n", "[farm] pin = 1: it must be true or false"),
        (MODEL + "[farm]\nisolation = 'all'\n", '[farm] isolation = "all": it must be one of "same-uid", "group"'),
        (MODEL + "[farm]\nisolation = 'group'\n", '[farm] isolation = "group": it needs service_group'),
        (MODEL + "[farm]\nservice_group = 'www'\n", '[farm] service_group = "www": it needs isolation = "group"'),
        (MODEL + "[farm]\nrestart_delay_ms = 1e5\n", "[farm] restart_delay_ms = 100000: it must be at most"),
        (MODEL + "[farm]\nstart_timeout_s = nan\n", "[farm] start_timeout_s = nan: it must be a number above 0"),
        (MODEL + "deadline_ms = inf\n", "[models.wdbc] deadline_ms = inf: it must be a number above 0 to 86400000"),
        (MODEL + "[arena]\nclient_mib_max = 4096\n", "[arena] client_mib_max = 4096: it must be at most"),
        (MODEL + "[router]\nprefetch_runs = 3\n", "prefetch_runs = 3: it must be a whole number from 1 to 2"),
        (MODEL + "max_bach = 3\n", "[models.wdbc] has no key 'max_bach'; did you mean 'max_batch'?"),
        (MODEL + "zzz = 3\n", "[models.wdbc] has no key 'zzz'; known are path, version"),
        (MODEL + "max_batch = 500\n", "[models.wdbc] max_batch = 500: it must be a whole number from 1 to 100"),
        (MODEL + "max_batch = 3.5\n", "[models.wdbc] max_batch = 3.5: it must be a whole number"),
        (MODEL + "workers = true\n", "[models.wdbc] workers = true: it must be a whole number from 0 to 1024"),
        (MODEL + "deadline_ms = '3'\n", '[models.wdbc] deadline_ms = "3": it must be a number above 0 to 86400000'),
        (MODEL + "batching = 'yes'\n", '[models.wdbc] batching = "yes": it must be one of "auto", "on", "off"'),
        ("[models.wdbc]\n", "[models.wdbc] lacks the key 'path'"),
        ("[models.wdbc]\npath = ''\n", '[models.wdbc] path = ""'),
        ("models = 3\n", "no model; add a section"),
        ("[models]\nwdbc = 'x.onnx'\n", '[models.wdbc] is "x.onnx"; it must be a table'),
        ("[models.'']\npath = 'x'\n", "[models.] is no name for a model"),
        (MODEL + "[models.wdbc.rules]\n", "[models.wdbc.rules] lacks the key 'rules'"),
        (
            MODEL + "[models.wdbc.rules]\nrules = []\n",
            "[models.wdbc.rules] rules = []: it must be tables of their own (",
        ),
        (
            MODEL + "[[models.wdbc.rules.rules]]\nname = 'a'\nanser = {}\n",
            "[[models.wdbc.rules.rules]] number 1 has no key 'anser'; did you mean 'answer'?",
        ),
        (
            MODEL + "[[models.wdbc.rules.rules]]\nname = 'a'\nanswer = {y = {z = 1}}\n",
            '[[models.wdbc.rules.rules]] number 1 answer = {"y":{"z":1}}: it must be a table (',
        ),
        (
            MODEL + "[models.wdbc.on]\ntimeot = ['reject']\n",
            "[models.wdbc.on] has no key 'timeot'; did you mean 'timeout'",
        ),
        (
            MODEL + "[models.wdbc.on]\ntimeout = ['rule']\n",
            '[models.wdbc.on] timeout = ["rule"]: it must be a list of "rules", "last_good", "constant", '
            '"previous_version", "retry", "reject" (',
        ),
        (MODEL + "[models.wdbc.on]\ntimeout = []\n", "[models.wdbc.on] timeout = []: it must be a list of "),
        (
            MODEL + "[models.wdbc.on]\nshed = ['rules']\n",
            "[models.wdbc.on] shed: 'rules' needs rules; add a section [models.NAME.rules]",
        ),
        (MODEL + "on = 'rules'\n", '[models.wdbc.on] is "rules"; it must be a table'),
        (
            MODEL + "[models.wdbc.last_good]\nmax_age_ms = 0\n",
            "[models.wdbc.last_good] max_age_ms = 0: it must be a num",
        ),
        (
            MODEL + "[models.wdbc.constant]\ny = {z = 1}\n",
            '[models.wdbc] constant = {"y":{"z":1}}: it must be a table (',
        ),
        (
            MODEL + "[models.wdbc.guard]\nfinit = true\n",
            "[models.wdbc.guard] has no key 'finit'; did you mean 'finite'",
        ),
        (
            MODEL + "[models.wdbc.guard]\nranges = {y = [1.0]}\n",
            '[models.wdbc.guard] ranges = {"y":[1.0]}: it must be a table of pairs of numbers (',
        ),
        (
            MODEL + "[models.wdbc.guard]\nranges = {y = [1.0, 0.0]}\n",
            "[models.wdbc.guard] ranges.y = [1, 0]: the least value must come first",
        ),
        (MODEL + "[models.wdbc.guard]\nranges = {y = [0.0, nan]}\n", "[models.wdbc.guard] ranges.y = [0, nan]: "),
        (
            MODEL + RULES + "[models.wdbc.rules.agree.y]\ntreshold = 1\n",
            "[models.wdbc.rules.agree.y] has no key 'treshold'; did you mean 'threshold'",
        ),
        (
            MODEL + RULES + "[models.wdbc.rules.agree.y]\n",
            "[models.wdbc.rules.agree.y] must have one of threshold and tolerance",
        ),
        (
            MODEL + RULES + "[models.wdbc.rules.agree]\ny = {threshold = 1.0, tolerance = 1.0}\n",
            "[models.wdbc.rules.agree.y] must have one of threshold and tolerance",
        ),
        (
            MODEL + RULES + "[models.wdbc.rules.agree]\ny = {tolerance = -1.0}\n",
            "[models.wdbc.rules.agree.y] tolerance = -1.0: it must be a number from 0",
        ),
        (
            MODEL + RULES + "[models.wdbc.rules.agree]\ny = {threshold = inf}\n",
            "[models.wdbc.rules.agree.y] threshold = inf: it must be a finite number",
        ),
        (
            MODEL + "[models.wdbc.rules]\nagree = 3\nrules = []\n",
            "[models.wdbc.rules] agree = 3: it must be tables of their own",
        ),
        (MODEL + "in_flight_max = -1\n", "in_flight_max = -1: it must be a whole number from 0 to 2147483648"),
        (MODEL + "[router]\nclient_rate = -1\n", "[router] client_rate = -1: it must be a number from 0 to 1000000000"),
        (MODEL + "[router]\nquarantine_mib = 2.5\n", "[router] quarantine_mib = 2.5: it must be a whole number from 0"),
        (MODEL + "[router]\npoison_ms = 0\n", "[router] poison_ms = 0: it must be a number above 0 to 86400000"),
    ],
)
def test_a_wrong_file_is_refused_by_file_key_value_and_what_is_allowed(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'farm.toml'}: ")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        configuration.load(str(tmp_path / "nothing.toml"))


def test_a_model_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"\[models\.wdbc\] path = .*wdbc\.onnx.*No such file"):
        configuration.check_files(read(tmp_path, MODEL))


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    config = read(tmp_path, MODEL + "[farm]\nruntime_dir = 'run'\n")
    assert config.models["wdbc"].path == str(tmp_path / "wdbc.onnx")
    assert config.farm.runtime_dir == str(tmp_path / "run")


def test_options_find_their_sections():
    options = {"workers": 5, "pin": False, "clients_max": 7, "arena_budget_mib": 512}
    config = configuration.for_models({"a": "a.onnx", "b": {"path": "b.onnx", "version": 2}}, "Farm()", options)
    assert [model.workers for model in config.models.values()] == [5, 5]
    assert (config.farm.pin, config.router.clients_max, config.arena.arena_budget_mib) == (False, 7, 512)
    assert config.serves == "a v1 (5 workers), b v2 (5 workers)"


@pytest.mark.parametrize("name", ["wrkers", "path"])
def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"Farm\(\): no option '{name}'"):
        configuration.for_models({"a": "a.onnx"}, "Farm()", {name: 1})


def test_a_key_stands_in_one_section_only():
    sections = [*configuration.SECTIONS.values(), configuration.ModelSection]
    keys = [key for kind in sections for key in kind.__struct_fields__]
    assert len(keys) == len(set(keys))


def test_defaults_of_the_file_are_those_of_router_and_workers():
    config = configuration.for_models({"a": "/a.onnx"}, "test")
    assert configuration.router_config(config) == RouterConfig(
        models=[ModelConfig(name="a", path="/a.onnx")], source="test"
    )
    expected = WorkerConfig(name="a", path="/a.onnx", session=SessionConfig())
    assert configuration.worker_config(config, "a", ()) == expected


def test_embedded_default_is_well():
    config = configuration.load(configuration.EMBEDDED_PATH)
    configuration.check_files(config)
    assert config.serves == "wdbc v1 (2 workers)"


def test_file_of_all_options_has_each_with_its_default():
    tables = tomllib.loads(FILE.read_text())
    configuration.check_files(configuration.load(str(FILE)))
    unset = set(re.findall(r"^# (\w+) = ", FILE.read_text(), re.MULTILINE))
    found = {"[farm]": tables["farm"], "[arena]": tables["arena"], "[router]": tables["router"]}
    for section, table in {**found, "[models.NAME]": tables["models"]["wdbc"]}.items():
        for field in msgspec.structs.fields(KINDS[section]):
            if field.required or field.encode_name in TABLES:
                continue
            if field.default is None:
                assert field.encode_name in unset
            else:
                assert table[field.encode_name] == field.default, field.encode_name


def test_tables_in_the_file_of_all_options_have_each_with_its_default_once_they_are_uncommented(tmp_path):
    text = FILE.read_text()
    start = text.index("# What a request gets instead")
    tables = re.sub(r"^# (?=\w+ = |\[)", "", text[start:], flags=re.MULTILINE)
    config = read(tmp_path, text[:start] + tables)
    model = config.models["wdbc"]
    written = tomllib.loads(tables)["models"]["wdbc"]
    assert set(written) == TABLES
    assert model.rules is not None and model.constant is not None
    assert model.rules.rows_max == RulesConfig(rules=model.rules.rules).rows_max
    assert model.rules.sample_every == RulesConfig(rules=model.rules.rules).sample_every
    assert model.last_good == LastGoodConfig() and set(written["last_good"]) == set(LastGoodConfig.__struct_fields__)
    assert model.guard is not None and model.guard.finite is GuardConfig().finite
    assert set(written["guard"]) == set(GuardConfig.__struct_fields__)
    # The defaults of a model with rules: what is not set comes to the same.
    unset = ModelConfig(name="m", rules=model.rules)
    assert fallback.table(ModelConfig(name="m", rules=model.rules, on=model.on)) == fallback.table(unset)
    assert set(written["on"]) == set(OnConfig.__struct_fields__)


def test_option_table_in_the_documents_agrees_with_the_structs():
    rows = re.findall(
        r"^\| `(\[+[\w.]+\]+)` \| `(\w+)` \| (.*?) \| (.*?) \| .+ \|$",
        (ROOT / "docs" / "OPERATIONS.md").read_text(),
        re.MULTILINE,
    )
    expected = []
    for section, kind in KINDS.items():
        for field in msgspec.structs.fields(kind):
            default = field.default if field.default is not msgspec.NODEFAULT else None
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            shown = "required" if field.required else "not set" if default is None else f"`{show(default)}`"
            if isinstance(default, msgspec.Struct):
                shown = "see below"
            expected.append((section, field.encode_name, shown, allowed(field.type)))
    assert [(s, k, d, a.replace("`", "")) for s, k, d, a in rows] == expected


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 10_000, "x = " + "1" * 5_000, "x = '\udcff'"], ids=["deep", "digits", "bytes"]
)
def test_a_text_that_the_parser_gives_up_on_is_refused_as_no_toml(tmp_path, text):
    (tmp_path / "farm.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"farm.toml: not TOML: "):
        configuration.load(str(tmp_path / "farm.toml"))
