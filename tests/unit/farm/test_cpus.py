"""Who gets which CPUs."""

from __future__ import annotations

import pytest

from farm.cpus import CpuPool
from farm.supervisor.host import quota_cpus


def test_each_worker_has_its_own_and_one_is_left_to_the_router():
    pool = CpuPool(range(8), None, [1, 1, 2], pin=True)
    taken = [pool.take(1), pool.take(1), pool.take(2)]
    assert taken == [(1,), (2,), (3, 4)]
    assert pool.line() is None


def test_fewer_cpus_than_processes_pins_nobody_and_says_so():
    pool = CpuPool([0, 1], None, [1, 1], pin=True)
    assert pool.take(1) == ()
    assert pool.line() == "3 processes with 3 threads on 2 CPUs: they share, none is pinned"


def test_a_quota_grants_time_and_no_cpus():
    assert CpuPool(range(64), 16.0, [1] * 4, pin=True).take(1) == ()
    small = CpuPool(range(64), 1.5, [1] * 4, pin=True)
    assert small.line() == "5 processes with 5 threads on a quota of 1.5 CPUs: they share, none is pinned"


def test_only_the_affinity_mask_is_given_out():
    pool = CpuPool([3, 5, 9], None, [1, 1], pin=True)
    assert [pool.take(1), pool.take(1)] == [(5,), (9,)]


def test_a_worker_beyond_the_cpus_floats_and_returned_ones_are_used_again():
    pool = CpuPool(range(3), None, [1, 1], pin=True)
    first, second = pool.take(1), pool.take(1)
    assert pool.take(1) == ()
    pool.give_back(second)
    pool.give_back(())
    assert pool.take(2) == ()
    assert pool.take(1) == second
    assert first != second


def test_pin_false_pins_nobody():
    assert CpuPool(range(8), None, [1], pin=False).take(1) == ()


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({}, None),
        ({"a/b": "max 100000"}, None),
        ({"a/b": "150000 100000"}, 1.5),
        ({"a": "50000 100000", "a/b": "150000 100000"}, 0.5),
        ({"a/b": "rubbish"}, None),
    ],
)
def test_the_least_quota_from_the_cgroup_to_the_root_counts(tmp_path, limits, quota):
    membership = tmp_path / "cgroup"
    membership.write_text("1:cpu:/elsewhere\n0::/a/b\n")
    for group, text in limits.items():
        (tmp_path / "fs" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / group / "cpu.max").write_text(text + "\n")
    assert quota_cpus(str(tmp_path / "fs"), str(membership)) == quota


def test_a_host_without_cgroup_2_has_no_quota(tmp_path):
    assert quota_cpus(str(tmp_path), str(tmp_path / "nothing")) is None
