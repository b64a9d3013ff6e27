"""`allow` of a model: names into numbers, and what is refused."""

from __future__ import annotations

import pytest

import farm
from farm import config
from router.config import AllowConfig


def load(allow: list[object], isolation: str = "group") -> config.Config:
    section = {"isolation": isolation} | ({"service_group": "root"} if isolation == "group" else {})
    tables = {"farm": section, "models": {"m": {"path": "/m.onnx", "allow": allow}}}
    return config.from_tables(tables, source="farm.toml", base_dir="/")


def test_users_and_groups_are_taken_by_name_and_by_number():
    told = config.router_config(load(["root", 1001, "1002", "@root", "@40"])).models[0].allow
    assert told == AllowConfig(uids=[0, 1001, 1002], gids=[0, 40])


@pytest.mark.parametrize(
    ("allow", "isolation", "said"),
    [
        (["nobody-of-that-name"], "group", "this host has no user 'nobody-of-that-name'"),
        (["@nobody-of-that-name"], "group", "this host has no group 'nobody-of-that-name'"),
        (["root"], "same-uid", 'allow: it needs .* isolation = "group"'),
    ],
)
def test_what_cannot_be_is_refused_by_name(allow, isolation, said):
    with pytest.raises(farm.ConfigError, match=rf"farm.toml: \[models.m\] .*{said}"):
        load(allow, isolation)
