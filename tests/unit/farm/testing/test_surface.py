"""Fake clients are the real ones: the same public names and signatures, accepted where those are."""

from __future__ import annotations

import inspect

import pytest

import farm
from farm.client import AsyncClient, Client
from farm.client.engine import Engine
from farm.client.leader import Turns
from farm.testing import FakeAsyncClient, FakeClient, FakeFarm
from farm.testing.clients import _ClockTurns
from farm.testing.engine import FakeEngine

PAIRS = pytest.mark.parametrize(("fake", "real"), [(FakeClient, Client), (FakeAsyncClient, AsyncClient)])
ISSUED = {"infer", "infer_many", "submit", "completions", "flush", "lease", "models", "wait_ready", "close", "lane"}


def public(kind: type) -> dict[str, object]:
    doors = ("__enter__", "__exit__", "__aenter__", "__aexit__")
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_") or name in doors}


@PAIRS
def test_public_names_are_equal(fake, real):
    assert public(fake).keys() == public(real).keys()
    assert public(fake).keys() >= ISSUED


@PAIRS
def test_public_signatures_are_equal(fake, real):
    for name, value in public(real).items():
        other = public(fake)[name]
        assert type(other) is type(value), name
        if callable(value):
            assert inspect.signature(other) == inspect.signature(value), name
            assert inspect.iscoroutinefunction(other) == inspect.iscoroutinefunction(value), name


@pytest.mark.parametrize(("door", "real"), [("client", Client), ("async_client", AsyncClient)])
def test_farm_makes_clients_with_the_arguments_of_the_real_ones(door, real):
    ours = inspect.signature(getattr(FakeFarm({}), door))
    assert list(ours.parameters.values()) == list(inspect.signature(real).parameters.values())


def test_fakes_pass_for_the_real_ones():
    fake = FakeFarm({})
    with fake.client() as client:
        assert isinstance(client, farm.Client)
        client.wait_ready()
        assert (client.lane, client.transport) == ("direct", "shm")
    with fake.client(lane="zeromq") as client:
        client.wait_ready()
        assert client.lane == "zeromq"
    assert isinstance(fake.async_client(), farm.AsyncClient)


def test_client_checks_its_own_arguments_too():
    fake = FakeFarm({})
    with pytest.raises(farm.InvalidRequest, match="lane is 'tcp'"):
        fake.client(lane="tcp")
    with pytest.raises(farm.InvalidRequest, match="slot_count is 0"):
        fake.client(slot_count=0)


@pytest.mark.parametrize(
    ("below", "fake", "harmless"),
    [
        (Engine, FakeEngine, {"take_finished", "wake_at_ns", "descriptors", "watched", "abandon"}),
        (Turns, _ClockTurns, {"abandon"}),
    ],
)
def test_what_clients_call_below_is_the_fakes_own(below, fake, harmless):
    """What it does not replace would look for sockets."""
    methods = {name for name, value in vars(below).items() if inspect.isfunction(value) and name[0] != "_"}
    assert methods - set(vars(fake)) <= harmless
