"""Verdicts: only beyond the spread, only from repeats, and in the right direction."""

from __future__ import annotations

import pytest

from bench import compare
from bench.result import Figure, Result, load, save
from bench.target import Latency, Measured
from farm.errors import ConfigError


def runs(target, rates, p99=1.0, void=None):
    latency = Latency(count=1, mean=p99, p50=p99, p90=p99, p95=p99, p99=p99, p999=p99, max=p99)
    return [
        Measured(
            target=target,
            label="40 in flight",
            group="bidding",
            seconds=1.0,
            asked=100,
            answered=100,
            good=100,
            per_second=rate,
            goodput=rate,
            outcomes={"model": 100},
            latency=latency,
            repeat=repeat,
            void=void,
        )
        for repeat, rate in enumerate(rates)
    ]


def verdicts(before, after):
    changes = compare.changes(Result(runs=before), Result(runs=after))
    return {change.figure: change.verdict for change in changes}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([100, 104, 102], [120, 125, 122], "better"),
        ([120, 125, 122], [100, 104, 102], "worse"),
        ([100, 110, 105], [108, 118, 112], "same"),
        ([100.0, 100.1, 100.2], [100.5, 100.6, 100.7], "same"),
        ([100], [200, 201, 202], "unknown"),
    ],
    ids=["beyond", "below", "overlapping", "less_than_it_is_worth", "one_run_alone"],
)
def test_verdict_is_given_only_beyond_the_spread(before, after, expected):
    assert verdicts(runs("farm", before), runs("farm", after))["per_second"] == expected


def test_less_latency_is_better():
    assert verdicts(runs("farm", [1, 1], p99=4.0), runs("farm", [1, 1], p99=2.0))["p99"] == "better"


def test_void_runs_have_no_part_in_a_verdict():
    before = runs("farm", [100, 101]) + runs("farm", [900], void="late")
    assert verdicts(before, runs("farm", [120, 121]))["per_second"] == "better"


def test_comparison_names_what_changed_and_warns_of_another_host():
    before, after = Result(runs=runs("farm", [100, 101])), Result(runs=runs("farm", [150, 151]))
    before.host["cpu"], after.host["cpu"] = "one", "another"
    text = compare.text(before, after)
    assert "hosts differ in cpu: one and another" in text
    assert "bidding, 40 in flight, farm" in text
    assert "x 1.498" in text and "better" in text


def test_results_without_a_common_step_say_so():
    assert "in common" in compare.text(Result(runs=runs("farm", [1])), Result(runs=runs("mosec", [1])))


def test_spread_is_from_the_least_to_the_most():
    assert Figure(2.0, 1.0, 4.0, 3).spread == 3.0


def test_result_file_gives_back_what_was_saved(tmp_path):
    path = tmp_path / "deep" / "result.json"
    save(Result(runs=runs("farm", [100]), command="x"), path)
    assert load(path).runs[0].per_second == 100
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("text", [None, "{}x", '{"runs": 1}'])
def test_file_that_is_no_result_is_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json"):
        load(path)


def test_markdown_has_a_row_for_each_step_and_says_what_is_void():
    from bench import markdown

    told = markdown.text(Result(runs=runs("farm", [100, 101]) + runs("mosec", [90], void="late"), left_out=["x: no"]))
    assert "| 40 in flight | farm | 100 | 100 |" in told
    assert "| 40 in flight (void) | mosec | - |" in told
    assert "- left out: x: no" in told
