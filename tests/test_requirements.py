"""What is pinned, what pyproject.toml admits, and that the two agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
ADMITTED = [Requirement(line) for listed in LISTS for line in listed]
CLIENT_DEPENDENCIES_MAX = 3
SERVER_DEPENDENCIES_MAX = 5

HASHED = ("requirements-ci.txt", "requirements-lowest.txt")
NAME_AND_VERSION = r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*"
MARKER = r"(?: ; (?:python_version|platform_machine|and|or|[<>=!]=?|\"[\w.]+\"| )+)?"
HASHES = r"(?: --hash=sha256:[0-9a-f]{64})+"


def lines(name):
    """Of a file of requirements, without comments; one that goes on is one line."""
    text = re.sub(r" \\\n +", " ", (ROOT / name).read_text())
    return [line for line in text.splitlines() if not line.startswith("#")]


def pinned(name):
    found = {}
    for line in lines(name):
        pin, version = line.split()[0].split("==")
        found[canonicalize_name(pin)] = Version(version)
    return found


@pytest.mark.parametrize("name", HASHED)
def test_each_pinned_requirement_is_a_name_a_version_and_hashes_and_nothing_else(name):
    assert lines(name)
    for line in lines(name):
        assert re.fullmatch(NAME_AND_VERSION + MARKER + HASHES, line), line


def test_what_trains_the_embedded_model_is_names_and_versions():
    for line in lines("tools/requirements-train.txt"):
        assert re.fullmatch(NAME_AND_VERSION, line), line


@pytest.mark.parametrize("requirement", ADMITTED, ids=lambda requirement: requirement.name)
def test_the_lowest_version_that_is_tried_is_the_one_that_is_admitted(requirement):
    (bound,) = requirement.specifier
    assert bound.operator == ">=", "a floor and nothing else: a ceiling is for what is known not to work"
    assert pinned("requirements-lowest.txt")[canonicalize_name(requirement.name)] == Version(bound.version)


@pytest.mark.parametrize("requirement", ADMITTED, ids=lambda requirement: requirement.name)
def test_the_version_that_ci_takes_is_admitted(requirement):
    assert pinned("requirements-ci.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_dependencies_are_few():
    assert len(PROJECT["dependencies"]) <= CLIENT_DEPENDENCIES_MAX
    assert len(PROJECT["optional-dependencies"]["server"]) <= SERVER_DEPENDENCIES_MAX


def test_what_may_run_before_the_tests_do_is_pinned():
    """setuptools builds the wheel without isolation, so pip fetches nothing for it that is not written down."""
    (build,) = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    for name in HASHED:
        assert pinned(name)["setuptools"] in build.specifier
