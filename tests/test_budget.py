"""The budget of request weight and its line, against a model of the exchange. Times are numbers; nothing waits here."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickcollect.budget import Budget, Purpose, Ticket

MINUTE_START_S = 1_784_000_040.0
"""A wall-clock time at the start of a UTC minute."""
DAY_S = 86_400.0


def nothing() -> None:
    """Wake nobody."""


@dataclass
class Asking:
    """Asks a budget for admission at times of a wall clock and a monotonic clock that go together until a step."""

    budget: Budget
    now_s: float = MINUTE_START_S + 5
    stepped_s: float = 0.0

    @property
    def monotonic_s(self) -> float:
        return self.now_s - self.stepped_s - MINUTE_START_S

    def step(self, seconds: float) -> None:
        """Set the wall clock by some seconds."""
        self.now_s += seconds
        self.stepped_s += seconds

    def join(self, weight: int, purpose: Purpose = Purpose.REPAIR, wake: Callable[[], None] = nothing) -> Ticket:
        ticket = Ticket(weight, purpose, self.monotonic_s, wake)
        self.budget.join(ticket)
        return ticket

    def reserve(self, ticket: Ticket) -> float:
        return self.budget.reserve(ticket, self.now_s, self.monotonic_s)

    def sent(self, weight: int, purpose: Purpose = Purpose.REPAIR) -> Ticket:
        """Book a request that is let in at once, and leave it unanswered."""
        ticket = self.join(weight, purpose)
        assert self.reserve(ticket) == 0
        return ticket

    def answered(self, ticket: Ticket, used: int | None = None) -> None:
        self.budget.settle(ticket, self.now_s, self.now_s, self.monotonic_s, used)

    def asked(self, weight: int, purpose: Purpose = Purpose.REPAIR, used: int | None = None) -> None:
        """Book a request and answer it at once."""
        self.answered(self.sent(weight, purpose), used)

    def refused(self, weight: int, purpose: Purpose = Purpose.REPAIR) -> float:
        """Return for how long a request is not let in; it leaves the line again."""
        ticket = self.join(weight, purpose)
        wait_s = self.reserve(ticket)
        assert wait_s > 0
        self.budget.leave(ticket, self.monotonic_s)
        return wait_s


# --- The limit -----------------------------------------------------------------------------------------------------


def test_the_smallest_limit_that_an_exchange_of_the_pool_states_counts() -> None:
    """Each exchange's own statement is kept: a higher one of another exchange changes nothing."""
    budget = Budget(2400)
    budget.learn("binance-futures", 2400)
    budget.learn("binance-delivery", 6000)
    assert budget.limit == 2400
    budget.learn("binance-delivery", 1200)
    budget.learn("binance-futures", 2400)
    assert budget.limit == 1200
    budget.learn("binance-delivery", 2400)
    assert budget.limit == 2400


@pytest.mark.parametrize(
    ("stated", "kept"), [(0, 6000), (-1, 6000), (2**63, 6000), (6001, 6000), (1, 600), (600, 600), (5999, 5999)]
)
def test_a_stated_limit_is_bounded_by_the_known_one(stated: int, kept: int) -> None:
    """What cannot be meant never raises the limit and never stops all requests."""
    budget = Budget(6000)
    budget.learn("binance", stated)
    assert budget.limit == kept


def test_a_new_limit_counts_at_once() -> None:
    """The limit from exchangeInfo replaces the one stated before."""
    asking = Asking(Budget(1000))
    asking.budget.learn("x", 200)
    asking.asked(80)
    assert asking.refused(50) == 55
    asking.budget.learn("x", 400)
    asking.asked(100)


def test_a_request_heavier_than_the_share_is_let_in_alone() -> None:
    """It has a minute in which nothing else was asked, and then nothing else is let in."""
    asking = Asking(Budget(2400, share=0.05))
    asking.asked(20)
    assert asking.refused(200) == 55
    asking.now_s += 60
    asking.asked(200)
    assert asking.refused(1) == 55


# --- Minutes and clocks ---------------------------------------------------------------------------------------------


def test_a_clock_that_steps_frees_nothing_early_and_holds_up_nobody_for_long() -> None:
    """After a step, forward or back, however far, what was used stays used for a minute, and is free within two."""
    for step_s in (120.0, 5 * 3600.0, -30.0, -5 * 3600.0):
        asking = Asking(Budget(200))
        asking.asked(100)
        asking.step(step_s)
        begun_s, waits = asking.monotonic_s, []
        ticket = asking.join(100)
        while wait_s := asking.reserve(ticket):
            waits.append(wait_s)
            asking.now_s += wait_s
        assert 60 <= asking.monotonic_s - begun_s <= 120, step_s


def test_steps_again_and_again_never_pass_the_share() -> None:
    """In no minute of real time is more let in than twice the share: two of the exchange's minutes may be touched."""
    asking, let_in = Asking(Budget(200)), Counter[int]()
    for number in range(600):
        asking.now_s += 1
        asking.step(61.0 if number % 3 else -700.0)
        ticket = asking.join(25)
        if asking.reserve(ticket) == 0:
            asking.answered(ticket)
            let_in[int(asking.monotonic_s // 60)] += 25
        asking.budget.leave(ticket, asking.monotonic_s)
    assert max(let_in.values()) <= 200


def test_a_clock_that_is_slewed_back_over_a_minute_frees_it_once() -> None:
    """Small corrections that take the clock back and forth over a minute's start free that minute once."""
    asking = Asking(Budget(200), MINUTE_START_S - 0.3)
    asking.asked(10)
    asking.now_s += 0.6
    asking.asked(100)
    asking.step(-0.5)
    assert asking.refused(50) < 1
    asking.step(0.5)
    assert asking.refused(50) > 50


def test_what_the_last_minute_told_does_not_fill_this_one() -> None:
    """An answer that crosses the minute's end brings its own weight along, not the old minute's total."""
    asking = Asking(Budget(100), MINUTE_START_S - 1)
    ticket = asking.sent(10)
    sent_s = asking.now_s
    asking.now_s += 2
    asking.budget.settle(ticket, sent_s, asking.now_s, asking.monotonic_s, 50)
    assert asking.refused(41) > 0
    asking.asked(40)


def test_the_first_second_after_a_full_minute_stays_free() -> None:
    """The exchange's minute may end a little later than ours: what it tells then would be the old minute's total."""
    asking = Asking(Budget(200), MINUTE_START_S - 10)
    asking.asked(100)
    asking.now_s += 10.25
    assert asking.refused(10) == 0.75
    asking.now_s += 0.75
    asking.asked(10)


# --- The address's other programs ------------------------------------------------------------------------------------


def test_what_is_on_its_way_comes_on_top_of_what_was_told() -> None:
    """An answer may not yet know of the requests sent meanwhile: they are added to the weight that it tells."""
    asking = Asking(Budget(2000))
    first, second = asking.sent(10), asking.sent(20)
    asking.answered(first, used=900)
    asking.answered(second)
    assert asking.refused(81) == 55
    asking.asked(80)


def test_only_a_part_of_what_is_left_is_on_its_way_at_once() -> None:
    """A quarter of the room, or one request: answers tell how much others use before more is sent."""
    asking = Asking(Budget(800))
    first = asking.sent(60)
    second = asking.sent(40)
    third = asking.join(1)
    assert asking.reserve(third) == math.inf
    asking.answered(first)
    assert asking.reserve(third) == 0
    asking.answered(second)


@dataclass
class Neighbour:
    """One of several programs behind one address, with answers that are long under way."""

    asking: Asking
    on_the_way: list[tuple[Ticket, int]] = field(default_factory=list)


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("weight", [4, 25, 200])
@pytest.mark.parametrize("programs", [2, 3])
def test_programs_behind_one_address_together_stay_below_the_limit(programs: int, weight: int, share: float) -> None:
    """Each asks as much as it is let, and hears three requests late what the address has used; no minute is passed."""
    limit, used = 2400, Counter[int]()
    neighbours = [Neighbour(Asking(Budget(limit, share))) for _ in range(programs)]
    for _ in range(8 * 600):
        for neighbour in neighbours:
            asking = neighbour.asking
            asking.now_s += 0.1
            minute = int(asking.now_s // 60)
            ticket = asking.join(weight)
            wait_s = asking.reserve(ticket)
            if wait_s == 0:
                used[minute] += weight
                neighbour.on_the_way.append((ticket, used[minute]))
            asking.budget.leave(ticket, asking.monotonic_s)
            if neighbour.on_the_way and (wait_s or len(neighbour.on_the_way) > 3):
                asking.answered(*neighbour.on_the_way.pop(0))
    assert max(used.values()) <= limit
    whole = [used[minute] for minute in sorted(used)[1:-1]]
    assert min(whole) >= limit * share - (1 + programs) * weight


def test_a_header_that_lies_costs_speed_but_never_stops_all() -> None:
    """With a weight told that no address can have used, one request a minute is let in still."""
    asking = Asking(Budget(6000))
    for _ in range(5):
        asking.asked(25, used=999_999_999)
        assert asking.refused(25) == 55
        asking.now_s += 60


# --- The line ------------------------------------------------------------------------------------------------------


def let_in(asking: Asking, tickets: dict[str, Ticket]) -> str:
    """Return whose turn it is: the one of the tickets that is let in now."""
    for name, ticket in tickets.items():
        if asking.reserve(ticket) == 0:
            asking.answered(ticket)
            del tickets[name]
            return name
    return ""


def test_repairs_go_first_then_who_came_first() -> None:
    """By purpose, and within it by arrival."""
    asking, waiting = Asking(Budget(10_000)), {}
    for name, purpose in (
        ("look", Purpose.LOOK), ("settle", Purpose.SETTLE), ("repair", Purpose.REPAIR), ("repair 2", Purpose.REPAIR)
    ):  # fmt: skip
        asking.now_s += 1
        waiting[name] = asking.join(10, purpose)
    assert [let_in(asking, waiting) for _ in range(4)] == ["repair", "repair 2", "settle", "look"]


@pytest.mark.parametrize(("purpose", "part"), [(Purpose.LOOK, 0.25), (Purpose.SETTLE, 0.5), (Purpose.REPAIR, 0.9)])
def test_lower_purposes_leave_room(purpose: Purpose, part: float) -> None:
    """Looks take a quarter of the share, settling a half, repairs nine tenths; the rest is for the others."""
    asking = Asking(Budget(2000))
    for _ in range(int(1000 * part) // 25):
        asking.asked(25, purpose)
    assert asking.refused(25, purpose) == 55
    other = Purpose.LOOK if purpose is Purpose.REPAIR else Purpose.REPAIR
    for _ in range(round(1000 * (1 - part)) // 25):
        asking.asked(25, other)


def test_nobody_waits_for_ever() -> None:
    """A look gets its turn beside repairs without end once it has waited for two minutes."""
    asking = Asking(Budget(200))
    look = asking.join(25, Purpose.LOOK)
    repair = asking.join(5)
    begun_s = asking.monotonic_s
    while asking.reserve(look):
        assert asking.monotonic_s - begun_s < 200
        if asking.reserve(repair) == 0:
            asking.answered(repair)
            repair = asking.join(5)
        asking.now_s += 1
    assert asking.monotonic_s - begun_s <= 180


def test_an_answer_and_a_leaving_wake_the_next_in_line() -> None:
    """Whoever waits for no time of the clock is woken by what it waits for."""
    asking, woken = Asking(Budget(800)), []
    first = asking.sent(90)
    second = asking.join(90, wake=lambda: woken.append("second"))
    third = asking.join(10, wake=lambda: woken.append("third"))
    assert asking.reserve(second) == math.inf
    asking.answered(first)
    assert woken == ["second"]
    asking.budget.leave(second, asking.monotonic_s)
    assert woken == ["second", "third"]
    assert asking.reserve(third) == 0


# --- Bans ----------------------------------------------------------------------------------------------------------


def test_a_ban_wakes_all() -> None:
    """Whoever waits learns of it at once, and for how long it is."""
    asking, woken = Asking(Budget(800)), []
    ticket = asking.join(1, Purpose.LOOK, lambda: woken.append("look"))
    asking.budget.close(500, asking.monotonic_s)
    assert woken == ["look"]
    assert asking.reserve(ticket) == 500
    asking.now_s += 200
    assert asking.budget.closed_for_s(asking.monotonic_s) == 300
    asking.now_s += 300
    assert asking.budget.closed_for_s(asking.monotonic_s) == 0
    assert asking.reserve(ticket) == 0


@pytest.mark.parametrize("seconds", [4 * DAY_S, 1e12, math.inf])
def test_no_ban_is_longer_than_three_days(seconds: float) -> None:
    """The exchange's longest ban (rest-api.md, "IP Limits") bounds whatever was told."""
    budget = Budget(800)
    budget.close(seconds, 0)
    assert budget.closed_for_s(0) == 3 * DAY_S


# --- The exchange's count ------------------------------------------------------------------------------------------


@dataclass
class Request:
    ticket: Ticket
    sent_s: float
    told: int | None = None


@dataclass
class Exchange:
    """Counts weight per clock minute; when it counts a request is its own affair."""

    ours: Counter[int] = field(default_factory=Counter)
    others: Counter[int] = field(default_factory=Counter)

    def count(self, request: Request, now_s: float) -> None:
        if request.told is None:
            minute = int(now_s // 60)
            self.ours[minute] += request.ticket.weight
            request.told = self.ours[minute] + self.others[minute]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 50)),
        st.tuples(st.just("count"), st.integers(0, 9)),
        st.tuples(st.just("answer"), st.integers(0, 9)),
        st.tuples(st.just("others"), st.integers(1, 30)),
        st.tuples(st.just("pass"), st.integers(1, 45)),
    ),
    max_size=60,
)


@given(STEPS, st.integers(100, 200))
@settings(deadline=None, max_examples=400)
def test_no_minute_ever_holds_more_than_the_share(steps: list[tuple[str, int]], limit: int) -> None:
    """However asking, counting and answering interleave, the exchange counts at most the share from us in a minute."""
    asking, exchange = Asking(Budget(limit), MINUTE_START_S), Exchange()
    unanswered: list[Request] = []
    for kind, amount in steps:
        if kind == "ask":
            ticket = asking.join(amount, Purpose(amount % 3))
            wait_s = asking.reserve(ticket)
            assert 0 <= wait_s <= 60 or (wait_s == math.inf and unanswered)
            unanswered += [Request(ticket, asking.now_s)] if wait_s == 0 else []
            asking.budget.leave(ticket, asking.monotonic_s)
        elif kind == "others":
            exchange.others[int(asking.now_s // 60)] += amount
        elif kind == "pass":
            asking.now_s += amount
        elif unanswered:
            request = unanswered[amount % len(unanswered)]
            exchange.count(request, asking.now_s)
            if kind == "answer":
                unanswered.remove(request)
                asking.budget.settle(request.ticket, request.sent_s, asking.now_s, asking.monotonic_s, request.told)
    for request in unanswered:
        exchange.count(request, asking.now_s)
    assert max(exchange.ours.values(), default=0) <= limit // 2
