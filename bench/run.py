"""Run scenarios: start targets in turns, drive each by the scenario's steps, take costs, keep what came out.

Targets take turns within every repeat, each time in another order, so that a host that warms, cools or is shared
disturbs all of them alike. Whatever breaks is left out by name; whatever was measured is kept.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from bench import host, scenario, targets
from bench.account import Account, per_request
from bench.faults import Fault, recovery_of
from bench.progress import Progress
from bench.result import OTHERS_PERCENT, Result
from bench.scenario import Scenario, Step
from bench.target import Load, Measured, Stream, Target, TargetFailed

START_S = 1.5
STEP_S = 1.2
"""Guesses for the plan: to start and stop a target; of a step beside its load."""

TRIES = 3
"""Of a step that others disturb."""

CAPACITY_IN_FLIGHT = 64
CAPACITY_S = 2.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller may change of scenarios; None leaves it to them.

    quiet_s: on a host that is shared, how long to wait before each step until others leave its CPUs alone; a step that
    they disturb all the same is driven again. 0 takes the host as it is.
    """

    targets: list[str] | None = None
    repeats: int | None = None
    seconds: float | None = None
    quick: bool = False
    quiet_s: float = 0.0


def measure(
    scenarios: list[Scenario],
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    keep: Callable[[Result], None] = lambda result: None,
) -> Result:
    """All of them, one after another. Ctrl-C ends it and returns what is there, marked as interrupted.

    keep: called with the result so far after each step.

    Raises:
        TargetFailed: a scenario or a target of it does not exist.
    """
    progress = progress or Progress(silent=True)
    run = Run(options or Options(), progress, keep)
    try:
        for each in scenarios:
            run.prepare(each)
        for each in scenarios:
            run.scenario(each)
    except KeyboardInterrupt:
        run.result.interrupted = True
        progress.say("interrupted: what is there is kept")
    finally:
        run.end()
    return run.result


class Run:
    """One call of the harness."""

    def __init__(self, options: Options, progress: Progress, keep: Callable[[Result], None]) -> None:
        self._options = options
        self._progress = progress
        self._keep = keep
        self._directory = tempfile.mkdtemp(prefix="bench-")
        self._targets: dict[str, Target] = {}
        self._steps: dict[str, list[Step]] = {}
        self._failed: set[str] = set()
        self._began_s = time.monotonic()
        self.result = Result(
            command=" ".join(["python -m bench", *sys.argv[1:]]),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=options.quick,
            host=host.facts(),
        )

    def prepare(self, asked: Scenario) -> None:
        """Know every step and target before the first is measured: a misspelt one shows at once."""
        steps = scenario.steps_of(asked, self._directory, quick=self._options.quick, seconds=self._options.seconds)
        self._steps[asked.name] = steps
        self.result.about[asked.name] = asked.about
        for name in dict.fromkeys(name for step in steps for name in self._names_of(step)):
            if name not in self._targets and name not in self._failed:
                self._get(name)
        self._progress.plan(self._plan_s(steps) * self._repeats_of(asked))

    def _get(self, name: str) -> None:
        if self._options.targets is None and name not in targets.names():
            self._leave_out(f"{name}: no such target here")  # a scenario may name peers that are not built in
            self._failed.add(name)
            return
        target = targets.get(name, self._directory)
        try:
            target.prepare()
        except TargetFailed as error:
            self._leave_out(f"{name}: {error}")
            self._failed.add(name)
        else:
            self._targets[name] = target

    def scenario(self, asked: Scenario) -> None:
        steps = self._steps[asked.name]
        self._progress.say(f"{asked.name}: {asked.about}")
        steps = self._with_capacity(asked, steps)
        for repeat in range(self._repeats_of(asked)):
            for case, group in itertools.groupby(steps, key=lambda step: msgspec.json.encode(step.case)):
                here = list(group)
                names = [name for name in dict.fromkeys(n for step in here for n in self._names_of(step))]
                turn = repeat % len(names) if names else 0
                for name in names[turn:] + names[:turn]:
                    if name in self._targets:
                        self._turn(self._targets[name], here, repeat)
                del case

    def _turn(self, target: Target, steps: list[Step], repeat: int) -> None:
        """One target through the steps of one case."""
        mine = [step for step in steps if target.name in self._names_of(step)]
        wanted = []
        for step in mine:
            refusal = target.refuses(step.case, step.load)
            if refusal is None:
                wanted.append(step)
            else:
                self._progress.step(f"{target.name}, {step.load.label}: left out", self._step_s(step))
                if not repeat:
                    self._leave_out(f"{target.name}, {step.scenario}, {step.load.label}: {refusal}")
        if not wanted:
            return
        try:
            began_s = time.monotonic()
            target.start(wanted[0].case)
            start_s = time.monotonic() - began_s
            for step in wanted:
                run = self._drive_undisturbed(target, step)
                run.repeat, run.group, run.start_s = repeat, step.scenario, round(start_s, 4)
                self.result.runs.append(run)
                self.result.took_s = round(time.monotonic() - self._began_s, 1)
                self._keep(self.result)
                self._progress.step(line_of(run), self._step_s(step))
        except TargetFailed as error:
            self._leave_out(f"{target.name}, {steps[0].scenario}, repeat {repeat + 1}: {error}")
        finally:
            target.stop()
        self._progress.step(f"{target.name} stopped", START_S)

    def _drive_undisturbed(self, target: Target, step: Step) -> Measured:
        """Faults cannot be struck twice: such a step is taken as it comes."""
        tries = TRIES if self._options.quiet_s and step.fault is None else 1
        for left in reversed(range(tries)):
            if self._options.quiet_s and not host.wait_quiet(self._options.quiet_s, OTHERS_PERCENT):
                self._progress.say(f"the host was not quiet within {self._options.quiet_s:g} s")
                left = 0
            run = self._drive(target, step)
            if (run.others_percent or 0.0) <= OTHERS_PERCENT or not left:
                break
            self._progress.say(f"again, others used {run.others_percent:.0f} % of the CPUs: {run.label}")
        return run

    def _drive(self, target: Target, step: Step) -> Measured:
        load = step.load
        fault = Fault(step.fault, target, load.seconds) if step.fault is not None else None
        account = Account(target.pids, fault.strike_at if fault is not None else None)
        try:
            run = target.drive(load, account)
        finally:
            account.cancel()
            if fault is not None:
                fault.end()
        # Those of a closed loop that were under way at its end cost something too, but are few.
        run.processes = per_request(account.processes, run.asked)
        run.cpu_us_per_request = round(sum(process.cpu_us_per_request for process in run.processes), 3)
        sizes = [process.pss_mib for process in run.processes if process.pss_mib is not None]
        run.pss_mib = round(sum(sizes), 2) if sizes else None
        run.steal_percent = account.steal_percent
        if account.host_s:
            ours_s = sum(process.cpu_s for process in run.processes)
            ours_s += (run.generator_cpu_us_per_request or 0.0) * run.asked / 1e6
            run.others_percent = round(max(0.0, 100 * (account.busy_s - ours_s) / account.host_s), 1)
        if fault is not None:
            run.marks = fault.marks
            run.notes |= recovery_of(run.timeline, run.marks)
        return run

    def _with_capacity(self, asked: Scenario, steps: list[Step]) -> list[Step]:
        """Rates in the place of multiples of capacity, which is measured here, once for each case."""
        rated = []
        for step in steps:
            if step.of_capacity is not None:
                key = f"{asked.name}: {step.case.models[0].name}"
                if key not in self.result.capacity:
                    self.result.capacity[key] = self._capacity_of(step)
                    self._progress.say(f"  capacity {self.result.capacity[key]:,.0f} a second")
                rate = round(self.result.capacity[key] * step.of_capacity, 1)
                step = msgspec.structs.replace(step, load=msgspec.structs.replace(step.load, rate=rate))
            rated.append(step)
        return rated

    def _capacity_of(self, step: Step) -> float:
        names = [name for name in self._names_of(step) if name in self._targets]
        if not names:
            raise TargetFailed(f"{step.scenario}: capacity cannot be measured, no target of it is here")
        target = self._targets[names[0]]
        try:
            target.start(step.case)
            if self._options.quiet_s:
                host.wait_quiet(self._options.quiet_s, OTHERS_PERCENT)
            return capacity_of(target, step.load)
        finally:
            target.stop()

    def _names_of(self, step: Step) -> list[str]:
        if self._options.targets is not None:
            return self._options.targets
        if self._options.quick:
            return [name for name in step.targets if name in targets.own_names()]
        return list(step.targets)

    def _repeats_of(self, asked: Scenario) -> int:
        return self._options.repeats or (1 if self._options.quick else asked.repeats)

    def _step_s(self, step: Step) -> float:
        return step.load.seconds + step.load.warm_s + STEP_S

    def _plan_s(self, steps: list[Step]) -> float:
        planned_s = 0.0
        for _, group in itertools.groupby(steps, key=lambda step: msgspec.json.encode(step.case)):
            here = list(group)
            planned_s += START_S * len({name for step in here for name in self._names_of(step)})
            planned_s += sum(self._step_s(step) * len(self._names_of(step)) for step in here)
        return planned_s

    def _leave_out(self, what: str) -> None:
        self.result.left_out.append(what)
        self._progress.say(f"left out: {what}")

    def end(self) -> None:
        for target in self._targets.values():
            target.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        self.result.took_s = round(time.monotonic() - self._began_s, 1)


class Unwatched:
    """A Watcher for runs whose costs nobody asks for."""

    def begin(self, at_ns: int) -> None:
        pass

    def end(self) -> None:
        pass


def capacity_of(target: Target, like: Load) -> float:
    """Requests a second that a started target answers when it always has enough to do and enough time."""
    load = Load(
        label="capacity",
        streams=tuple(
            Stream(model=stream.model, share=stream.share, deadline_ms=10_000.0, priority=stream.priority)
            for stream in like.streams
        ),
        seconds=CAPACITY_S,
        warm_s=0.5,
        in_flight=CAPACITY_IN_FLIGHT,
        caller="submit",
        generators=like.generators,
    )
    return target.drive(load, Unwatched()).per_second


def line_of(run: Measured) -> str:
    """A run in a line."""
    parts = [f"{run.target:<12} {run.label}: {run.per_second:,.0f}/s"]
    if run.goodput < 0.999 * run.per_second or run.offered:
        parts.append(f"in time {run.goodput:,.0f}/s")
    if run.latency is not None:
        parts.append(f"p50 {run.latency.p50:.3f} p99 {run.latency.p99:.3f} p99.9 {run.latency.p999:.3f} ms")
    if run.cpu_us_per_request:
        parts.append(f"CPU {run.cpu_us_per_request:.1f} us")
    if run.marks:
        parts.append(f"{run.marks[0].what} at {run.marks[0].at_s:g} s")
    if run.others_percent is not None and run.others_percent > OTHERS_PERCENT:
        parts.append(f"disturbed: others used {run.others_percent:.0f} % of the CPUs")
    if run.void is not None:
        parts.append(f"VOID: {run.void}")
    return ", ".join(parts)
