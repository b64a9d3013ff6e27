"""`farm config check`: is this file right, and what does it come to?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from farm.cli.verb import Verbs, describe
from farm.errors import ConfigError

if TYPE_CHECKING:
    from msgspec import Struct

    from farm.config import Config
    from router.config import RulesConfig


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs, "config", "look at a configuration", "farm config check farm.toml", run, "`check FILE` is what there is."
    )
    into = parser.add_subparsers(title="what to do", metavar="check", dest="what", required=True)
    check = describe(
        into,
        "check",
        "check a file and print the effective configuration",
        "farm config check farm.toml",
        run,
        "An error names file, key, value and what is allowed.",
    )
    check.add_argument("file", metavar="FILE", help="a TOML file")


def run(arguments: argparse.Namespace) -> int:
    from farm import config as configuration

    config = configuration.load(arguments.file)
    configuration.check_files(config)
    check_rules(config)
    show(config)
    return 0


def check_rules(config: Config) -> None:
    """Compile every model's rules, as the router will.

    Raises:
        ConfigError: one does not compile, or its compiler is not installed.
    """
    ruled = {name: model.rules for name, model in config.models.items() if model.rules is not None}
    if not ruled:
        return
    try:
        from router.rules import RuleBook, RuleRefused
    except ModuleNotFoundError as error:
        raise ConfigError(f"rules cannot be checked without {error.name}: pip install 'shmfarm[server]'") from error
    for name, rules in ruled.items():
        try:
            RuleBook(rules)
        except RuleRefused as refused:
            raise ConfigError(f"{config.source}: [models.{name}.rules] {refused}") from refused


def show(config: Config) -> None:
    """Every option with what it comes to, as TOML; rules in the order in which they are tried."""
    print(f"# {config.source}: well. Every option, defaults included:")
    for section in ("farm", "arena", "router"):
        print(f"\n[{section}]")
        _show_keys(getattr(config, section))
    for name, model in config.models.items():
        print(f"\n[models.{_key(name)}]")
        _show_keys(model)
        if model.rules is not None:
            _show_rules(name, model.rules)


def _show_rules(model: str, rules: RulesConfig) -> None:
    from farm.strict import show as shown

    print(
        f"\n# rules of {model}, for at most {rules.rows_max} rows a turn of the router; the first that holds answers:"
    )
    for name, columns in rules.features.items():
        print(f"#   input {name}: {len(columns)} features")
    for number, rule in enumerate(rules.rules, 1):
        condition = f"when {rule.when}" if rule.when is not None else "always"
        decision = f", decision {shown(rule.decision)}" if rule.decision is not None else ""
        print(f"#   {number}. {rule.name}: {condition}: {shown(rule.answer)}{decision}")


def _show_keys(section: Struct) -> None:
    for key in section.__struct_fields__:
        value = getattr(section, key)
        if key != "rules":
            print(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}")


def _toml(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _toml(name)
