"""Virtual clients: they allocate slots from a real SlotPool by the rules, and now and then they lie, cancel or die."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from router import events as ev
from shm.client import Reply, Request
from shm.endings import Reason
from shm.errors import NoRoom, TooLarge
from shm.layout import Tensor, place, slots_for
from shm.limits import DEADLINE_NS_MAX
from shm.slots import SlotPool
from tests.sim.recorded import GAPS
from tests.sim.scenario import MS

if TYPE_CHECKING:
    from tests.sim.world import World

LIES = ("slot_busy", "slot_range", "duplicate", "model", "tensors", "rows", "far_deadline")


class SimClient:
    """One service. A router's death gives it a new session; its own death ends it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.asking = True
        self.next_id = 1
        self.at_gap = world.rng.randrange(len(GAPS))
        self.slow = world.rng.random() < world.scenario.faults["slow_client"]
        """It reads what it is sent long after it came."""
        self.attach()
        world.after(self.interval(), self.ask)

    def attach(self) -> None:
        world = self.world
        self.session = world.next_session()
        self.pool = SlotPool(world.scenario.slot_count)
        self.open: dict[int, Request] = {}
        """Asked and not answered."""
        self.parked: dict[int, Request] = {}
        """Answered, the slots not yet given back."""
        self.lies: set[int] = set()
        self.out_ns = self.heard_ns = 0
        world.clients[self.session] = self
        self.say(ev.ClientAttached(self.session, world.scenario.slot_count, world.scenario.slot_bytes))
        self.attached_ns = self.out_ns

    def attach_anew(self) -> None:
        """The router died. What is still in time is asked again under its own id, from the new arena."""
        wanted = [request for request in self.open.values() if request.deadline_ns > self.world.now_ns]
        self.attach()
        again = []
        for request in wanted:
            try:
                slot = self.pool.acquire(request.slot_count)
            except NoRoom:
                continue
            again.append(replace(request, slot=slot))
        if again:
            self.submit(again)

    def interval(self) -> int:
        scenario = self.world.scenario
        if not scenario.recorded:
            return int(self.world.rng.expovariate(1.0) * scenario.frame_interval_ns)
        self.at_gap = (self.at_gap + 1) % len(GAPS)
        return int(GAPS[self.at_gap] * scenario.frame_interval_ns)

    def say(self, event: ev.Event) -> None:
        """The lane keeps order."""
        self.out_ns = max(self.out_ns + 1, self.world.now_ns + self.world.rng.randint(20_000, 100_000))
        self.world.at(self.out_ns, self.world.deliver, event, self.world.epoch)

    # Asking

    def ask(self) -> None:
        world = self.world
        if not self.alive or not self.asking:
            return
        count = world.rng.randint(1, 3)
        if world.rng.random() < world.scenario.burst:
            count = world.rng.randint(8, 40)
        requests = []
        for _ in range(count):
            request = self.draw_request()
            if request is None:
                break
            requests.append(request)
        if requests:
            self.submit(requests)
        if world.chance("lie"):
            self.lie(world.rng.choice(LIES))
        if world.chance("client_dies"):
            self.die()
        world.after(self.interval(), self.ask)

    def submit(self, requests: list[Request]) -> None:
        world = self.world
        for request in requests:
            self.open[request.id] = request
            world.truth.asked(self.session, request)
            if world.chance("poison"):
                world.poisonous.add((self.session, request.slot))
            if world.chance("cancel"):
                world.after(world.rng.randint(0, 20 * MS), self.cancel, request.id, self.session)
            elif world.chance("gives_up"):
                patience = max(0, request.deadline_ns - world.now_ns) + world.rng.randint(0, 5 * MS)
                world.after(patience, self.cancel, request.id, self.session)
        poison = frozenset(request.id for request in requests if world.chance("known_poison"))
        for number in poison:
            world.truth.sessions[self.session].requests[number].known_poison = True
        self.say(ev.RequestsArrived(self.session, requests, poison))

    def cancel(self, number: int, session: int) -> None:
        """It waits no longer. The slots stay parked until the farm gives them back."""
        if self.alive and session == self.session and number in self.open:
            self.say(ev.RequestsCancelled(self.session, [number]))

    def draw_request(self) -> Request | None:
        """A request of some model, its slots taken; None when there is no room."""
        world, rng = self.world, self.world.rng
        index = rng.randrange(len(world.scenario.models))
        model = world.scenario.models[index]
        rows = rng.choice((1, 1, 1, 2, 5, 40)) if model.config.name != "fixed" else 0
        tensors: tuple[Tensor, ...] | None = None
        if model.widths:
            width = rng.choice(model.widths)
            payload = rows * width * 4
            tensors = (Tensor(0, 1, (rows, width), 0, payload),)
        else:
            payload = place([16 * (rows or 3)])[1]
        count = slots_for(payload, world.scenario.slot_bytes)
        try:
            slot = self.pool.acquire(count)
        except (NoRoom, TooLarge):
            return None
        deadline = int(rng.choice(world.scenario.deadlines_ms) * MS * rng.uniform(0.1, 1.5))
        number = self.next_id
        self.next_id += 1
        return Request(number, index, world.now_ns + deadline, slot, count, rows, self.draw_priority(), tensors)

    def draw_priority(self) -> int:
        rng = self.world.rng
        return 0 if rng.random() < 0.7 else rng.randint(0, 7)

    # Lying

    def lie(self, kind: str) -> None:
        """One request that must be refused by name, at once, without harm to anything that is in flight."""
        world = self.world
        honest = self.draw_request()
        if honest is None:
            return
        # Refused at once, it never takes these.
        self.pool.release(honest.slot, honest.slot_count)
        world.turn()
        in_flight = world.truth.in_flight(self.session)
        told = self.make_lie(kind, honest, in_flight)
        if told is None or not world.truth.is_attached(self.session):
            return
        lie, reason = told
        if reason is not Reason.DUPLICATE_ID:
            self.lies.add(lie.id)
        world.truth.lied(self.session, lie, reason)
        world.inbox.append(ev.RequestsArrived(self.session, [lie]))
        world.turn()

    def make_lie(self, kind: str, honest: Request, in_flight: Request | None) -> tuple[Request, Reason] | None:
        name = self.world.scenario.models[honest.model].config.name
        match kind:
            case "slot_busy" if in_flight is not None:
                return replace(honest, slot=in_flight.slot, slot_count=in_flight.slot_count), Reason.SLOT_BUSY
            case "slot_range":
                return replace(honest, slot=self.world.scenario.slot_count), Reason.SLOT_RANGE
            case "duplicate" if in_flight is not None:
                return replace(honest, id=in_flight.id), Reason.DUPLICATE_ID
            case "model":
                return replace(honest, model=len(self.world.scenario.models)), Reason.UNKNOWN_MODEL
            case "tensors":
                return replace(honest, tensors=(Tensor(0, 11, (1, 4), 0, 32),)), Reason.DTYPE
            case "rows" if name == "described":
                # Fewer rows than there are would be charged less than they cost.
                return replace(honest, rows=self.world.rng.choice((0, honest.rows + 1))), Reason.DIMENSION
            case "rows" if name == "fixed":
                return replace(honest, rows=2**31), Reason.DIMENSION
            case "rows" if name in ("rows", "single"):
                return replace(honest, rows=2**31), Reason.BYTE_LENGTH
            case "far_deadline":
                return replace(honest, deadline_ns=self.world.now_ns + DEADLINE_NS_MAX * 2), Reason.DEADLINE_RANGE
        return None

    # Hearing

    def hear_replies(self, session: int, replies: list[Reply]) -> None:
        if session != self.session:
            return
        for reply in replies:
            if reply.id in self.lies:
                self.lies.discard(reply.id)
                continue
            request = self.open.pop(reply.id, None)
            assert request is not None, f"reply to {reply.id}, which was not asked or was answered before"
            if reply.held:
                self.parked[reply.id] = request
            else:
                self.pool.release(request.slot, request.slot_count)
            self.world.poisonous.discard((session, request.slot))

    def hear_release(self, session: int, ids: list[int]) -> None:
        if session != self.session:
            return
        for number in ids:
            request = self.parked.pop(number)
            self.pool.release(request.slot, request.slot_count)

    # Its end

    def die(self) -> None:
        """What it has sent may still arrive, before or after the end of its session does."""
        self.alive = False
        world = self.world
        lost_ns = max(self.attached_ns + 1, world.now_ns + world.rng.randint(0, 200_000))
        world.at(lost_ns, world.deliver, ev.ClientLost(self.session), world.epoch)
        world.after(world.rng.randint(0, 5 * MS), world.add_client)
