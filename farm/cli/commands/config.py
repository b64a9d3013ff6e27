"""`farm config check`: is this file right, and what does it come to?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from farm.cli.verb import Verbs, describe

if TYPE_CHECKING:
    from msgspec import Struct

    from farm.checking import Checked
    from farm.config import Config, ModelSection
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
    from farm import checking
    from farm import config as configuration

    config = configuration.load(arguments.file)
    configuration.check_files(config)
    show(config, checking.check_models(config))
    return 0


def show(config: Config, checked: dict[str, Checked]) -> None:
    """Every option with what it comes to, as TOML; then each model's table of what a request gets instead."""
    print(f"# {config.source}: well. Every option, defaults included:")
    for section in ("farm", "arena", "router"):
        print(f"\n[{section}]")
        _show_keys(getattr(config, section))
    for name, model in config.models.items():
        print(f"\n[models.{_key(name)}]")
        _show_keys(model)
        print()
        for line in _instead(name, model, checked[name]):
            print(f"# {line}")


def _instead(name: str, model: ModelSection, checked: Checked) -> list[str]:
    """What a request gets when the model's answer cannot be had."""
    from farm.config import model_config
    from farm.strict import show as shown
    from router.fallback import table

    rows = table(model_config(name, model))
    width = max(map(len, rows))
    lines = [
        f"{name}, when the model's answer cannot be had, tried in order:",
        *(f"  {failure:<{width}}  {', '.join(steps)}" for failure, steps in rows.items()),
    ]
    if model.rules is not None:
        lines += _rules(model.rules, checked)
    if model.constant is not None:
        lines.append(f"constant: {shown(model.constant)}")
    if any("last_good" in steps for steps in rows.values()):
        kept = model.last_good
        lines.append(
            f"last_good: up to {kept.max_age_ms:g} ms old, by the key of the request; "
            f"at most {kept.keys_max} keys and {kept.mib_max} MiB"
        )
    if model.guard is not None:
        ranges = [f"{output} from {low:g} to {high:g}" for output, (low, high) in model.guard.ranges.items()]
        lines.append(f"guard: {', '.join([*(['finite'] if model.guard.finite else []), *ranges]) or 'nothing'}")
    if checked.unchecked is not None:
        lines.append(checked.unchecked)
    return lines


def _rules(rules: RulesConfig, checked: Checked) -> list[str]:
    from farm.strict import show as shown

    cost = f", {checked.row_us:.1f} us a row" if checked.row_us is not None else ""
    lines = [f"rules, for at most {rules.rows_max} rows a turn of the router{cost}; the first that holds answers:"]
    for name, columns in rules.features.items():
        lines.append(f"  input {name}: {len(columns)} features")
    for number, rule in enumerate(rules.rules, 1):
        condition = f"when {rule.when}" if rule.when is not None else "always"
        decision = f", decision {shown(rule.decision)}" if rule.decision is not None else ""
        cost = f" ({checked.rule_us[rule.name]:.1f} us)" if rule.name in checked.rule_us else ""
        lines.append(f"  {number}. {rule.name}: {condition}: {shown(rule.answer)}{decision}{cost}")
    if rules.sample_every:
        near = [
            f"{output} within {how.tolerance:g}"
            if how.threshold is None
            else f"{output} on one side of {how.threshold:g}"
            for output, how in rules.agree.items()
        ]
        agree = ", ".join([*near, "all else equal, floats within 0.1"])
        lines.append(f"  one of {rules.sample_every} answers of the model is put to them too; they agree: {agree}")
    return lines


TABLES = frozenset({"rules", "constant", "last_good", "guard", "on"})
"""Keys of a model that are tables: shown by what they come to."""


def _show_keys(section: Struct) -> None:
    for key in section.__struct_fields__:
        value = getattr(section, key)
        if key not in TABLES:
            print(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}")


def _toml(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _toml(name)
