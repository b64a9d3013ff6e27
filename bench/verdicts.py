"""Verdicts of `bench.check`: figures of the same repeat are compared, and the median of the ratios is judged."""

from __future__ import annotations

import statistics

from msgspec import Struct, structs

from bench.result import OTHERS_PERCENT, figure_of
from bench.target import Measured, TargetFailed

TOLD = "(told)"
"""Of a verdict that nothing is asked of."""
OPEN_HELD = 0.999
"""Of the requests due, those that must be answered by the model for a load to count as held."""


class Verdict(Struct, frozen=True, kw_only=True):
    """One comparison. farm, peer: medians; ratio: the median of the repeats' ratios, from `low` to `high`. holds: None
    when it could not be measured."""

    claim: str
    holds: bool | None
    farm: float | None = None
    peer: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    wanted: str = ""
    miss: str = ""


class Runs:
    """Of one row, by what they are of. `disturbed`: undisturbed ones were asked for where there were none."""

    def __init__(self, runs: list[Measured]) -> None:
        self._runs = runs
        self.disturbed = False

    def of(self, group: str, label: str, target: str) -> list[Measured]:
        """In the order of their repeats; without those that others on the host disturbed, unless all were.

        Raises:
            TargetFailed: there are none, or each of them is void.
        """
        here = [run for run in self._runs if (run.group, run.label, run.target) == (group, label, target)]
        kept = [run for run in here if run.void is None]
        if not kept:
            why = here[0].void if here else "it was left out"
            raise TargetFailed(f"{target}, {label}: {why}")
        quiet = [run for run in kept if (run.others_percent or 0.0) <= OTHERS_PERCENT]
        self.disturbed |= not quiet
        return sorted(quiet or kept, key=lambda run: run.repeat)

    def values(self, group: str, label: str, target: str, figure: str) -> dict[int, float]:
        """By repeat."""
        values = {run.repeat: figure_of(run, figure) for run in self.of(group, label, target)}
        known = {repeat: value for repeat, value in values.items() if value is not None}
        if not known:
            raise TargetFailed(f"{target}, {label}: no {figure}, nothing was answered")
        return known


def compare(
    claim: str, ours: dict[int, float], theirs: dict[int, float], *, at_most: float | None = None, least: float = 0.0
) -> Verdict:
    """The ratio within each repeat, their median against the limit: at most so much, or at least. Where no repeat has
    both undisturbed, the ratio of the medians."""
    both = sorted(ours.keys() & theirs.keys())
    ratios = [ours[repeat] / theirs[repeat] for repeat in both]
    if not both:
        ratios = [statistics.median(ours.values()) / statistics.median(theirs.values())]
    ratio = statistics.median(ratios)
    holds = ratio <= at_most if at_most is not None else ratio >= least
    limit = at_most if at_most is not None else least
    return Verdict(
        claim=claim,
        holds=holds,
        farm=statistics.median(ours.values()),
        peer=statistics.median(theirs.values()),
        ratio=ratio,
        low=min(ratios),
        high=max(ratios),
        wanted=f"{'at most' if at_most is not None else 'at least'} {limit:g} x",
        miss=f"by {abs(ratio / limit - 1):.0%}",
    )


def told(claim: str, ours: dict[int, float], theirs: dict[int, float]) -> Verdict:
    """For the reader: nothing is asked of it."""
    compared = compare(claim, ours, theirs, least=1.0)
    return structs.replace(compared, holds=True, wanted=TOLD, miss="")


def below(claim: str, ours: dict[int, float], limit: float, unit: str, peer: dict[int, float] | None = None) -> Verdict:
    """The median against an absolute limit."""
    middle = statistics.median(ours.values())
    return Verdict(
        claim=claim,
        holds=middle < limit,
        farm=middle,
        peer=statistics.median(peer.values()) if peer else None,
        low=min(ours.values()),
        high=max(ours.values()),
        wanted=f"below {limit:g} {unit}",
        miss=f"by {middle / limit - 1:.0%}",
    )


def best(*peers: dict[int, float]) -> dict[int, float]:
    """The least of several peers' figures in each repeat."""
    repeats = set[int]().union(*peers)
    return {repeat: min(peer[repeat] for peer in peers if repeat in peer) for repeat in repeats}


def held(claim: str, runs: list[Measured]) -> Verdict:
    """All that was due was answered by the model."""
    shares = {run.repeat: run.answered / max(1, run.asked) for run in runs}
    lost = sum(run.asked - run.answered for run in runs)
    others = {name: 0 for run in runs for name in run.outcomes if name != "model"}
    return Verdict(
        claim=claim,
        holds=min(shares.values()) >= OPEN_HELD if "held" in claim else lost == 0,
        farm=sum(run.answered for run in runs),
        wanted="all answered" if "held" not in claim else f"{OPEN_HELD:.1%} answered",
        miss=f"by {lost} of {sum(run.asked for run in runs)} ({', '.join(others)})",
    )
