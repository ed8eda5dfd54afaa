"""The breaker, by hand and against a model of it that is written as plainly as can be."""

from __future__ import annotations

import pytest
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from backends.openai.breaker import Breaker, Permit, State
from backends.openai.options import BreakerOptions

OPTIONS = BreakerOptions(failures=3, open_s=30, successes=2, probes=1)


def breaker(options: BreakerOptions = OPTIONS) -> tuple[Breaker, list[State]]:
    changes: list[State] = []
    return Breaker(options, changes.append), changes


def fail(one: Breaker, times: int, now_s: float = 0.0) -> None:
    for permit in [one.begin(now_s) for _ in range(times)]:
        one.failed(permit, now_s)


def test_three_in_a_row_open_it_and_two_answers_close_it() -> None:
    one, changes = breaker()
    fail(one, 2)
    assert one.allows(0)
    fail(one, 1)
    assert not one.allows(29.9)
    assert one.wait_s(10) == 20
    assert one.allows(30)
    first = one.begin(30)
    assert not one.allows(30), "one probe at a time"
    one.answered(first)
    second = one.begin(31)
    one.answered(second)
    assert one.allows(31)
    one.succeeded(first)
    one.succeeded(second)
    assert changes == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_a_success_between_failures() -> None:
    one, changes = breaker()
    for _ in range(5):
        fail(one, 2)
        one.succeeded(one.begin(0))
    assert changes == []


def test_an_answer_that_is_then_cut_is_no_success() -> None:
    one, _ = breaker()
    for _ in range(3):
        permit = one.begin(0)
        one.answered(permit)
        one.failed(permit, 0)
    assert one.state is State.OPEN


def test_a_failure_in_a_trial_opens_it_again() -> None:
    one, changes = breaker()
    fail(one, 3)
    one.answered(one.begin(30))
    fail(one, 1, 40)
    assert one.state is State.OPEN
    assert one.wait_s(40) == 30
    assert changes == [State.OPEN, State.HALF_OPEN, State.OPEN]


def test_an_answer_of_a_trial_that_is_cut_opens_it_again() -> None:
    one, _ = breaker()
    fail(one, 3)
    permit = one.begin(30)
    one.answered(permit)
    one.failed(permit, 31)
    assert one.state is State.OPEN


def test_streams_from_before_an_outage_say_nothing_about_the_trial() -> None:
    one, _ = breaker()
    old = [one.begin(0) for _ in range(4)]
    fail(one, 3)
    one.failed(old[0], 1)
    assert one.wait_s(1) == 29
    probe = one.begin(30)
    one.failed(old[1], 31)
    one.succeeded(old[2])
    one.abandoned(old[3])
    assert one.state is State.HALF_OPEN
    assert not one.allows(31)
    one.abandoned(probe)
    assert one.allows(31)


def test_zero_failures_never_open_it() -> None:
    one, changes = breaker(BreakerOptions(0, 30, 2, 1))
    fail(one, 100)
    assert changes == []


def test_other_numbers_count_from_now() -> None:
    one, _ = breaker()
    one.configure(BreakerOptions(1, 5, 1, 1))
    fail(one, 1)
    assert one.wait_s(0) == 5
    one.answered(one.begin(5))
    assert one.state is State.CLOSED


def test_what_must_not_happen() -> None:
    one, _ = breaker()
    permit = one.begin(0)
    one.answered(permit)
    with pytest.raises(AssertionError):
        one.answered(permit)
    fail(one, 3)
    with pytest.raises(AssertionError):
        one.begin(1)


class Attempts:
    """What the model knows of an attempt."""

    def __init__(self, permit: Permit, trial: int) -> None:
        self.permit = permit
        self.trial = trial  # its number, 0 = begun while closed
        self.has_answered = False


class BreakerModel(RuleBasedStateMachine):
    """The specification: a state, counts, and the attempts of the trial that is on."""

    attempts: Bundle[Attempts] = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.options = BreakerOptions(failures=3, open_s=30, successes=2, probes=2)
        self.changes: list[State] = []
        self.breaker = Breaker(self.options, self.changes.append)
        self.now_s = 0.0
        self.state = State.CLOSED
        self.failures = self.answers = self.trial = 0
        self.until_s = 0.0
        self.unanswered: set[Attempts] = set()
        self.expected: list[State] = []

    def become(self, state: State) -> None:
        self.state = state
        self.expected.append(state)
        self.failures = self.answers = 0
        self.unanswered = set()
        if state is State.OPEN:
            self.until_s = self.now_s + 30
        if state is State.HALF_OPEN:
            self.trial += 1

    def is_of_trial(self, one: Attempts) -> bool:
        return self.state is State.HALF_OPEN and one.trial == self.trial

    def may(self) -> bool:
        if self.state is State.OPEN:
            return self.now_s >= self.until_s
        return self.state is State.CLOSED or len(self.unanswered) < 2

    @rule(seconds=some.sampled_from([0.5, 10, 29.5, 30]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(may)
    @rule(target=attempts)
    def begin(self) -> Attempts:
        if self.state is State.OPEN:
            self.become(State.HALF_OPEN)
        is_trial = self.state is State.HALF_OPEN
        one = Attempts(self.breaker.begin(self.now_s), self.trial if is_trial else 0)
        if is_trial:
            self.unanswered.add(one)
        return one

    def model_answer(self, one: Attempts) -> None:
        one.has_answered = True
        if one in self.unanswered:
            self.unanswered.remove(one)
            self.answers += 1
            if self.answers == 2:
                self.become(State.CLOSED)

    @rule(one=attempts)
    def answered(self, one: Attempts) -> None:
        if not one.has_answered:
            self.breaker.answered(one.permit)
            self.model_answer(one)

    @rule(one=consumes(attempts))
    def succeeded(self, one: Attempts) -> None:
        self.breaker.succeeded(one.permit)
        if not one.has_answered:
            self.model_answer(one)
        if self.state is State.CLOSED:
            self.failures = 0

    @rule(one=consumes(attempts))
    def failed(self, one: Attempts) -> None:
        self.breaker.failed(one.permit, self.now_s)
        if self.state is State.CLOSED:
            self.failures += 1
            if self.failures == 3:
                self.become(State.OPEN)
        elif self.is_of_trial(one):
            self.become(State.OPEN)
        self.unanswered.discard(one)

    @rule(one=consumes(attempts))
    def abandoned(self, one: Attempts) -> None:
        self.breaker.abandoned(one.permit)
        self.unanswered.discard(one)

    @invariant()
    def they_agree(self) -> None:
        assert self.breaker.state is self.state
        assert self.breaker.allows(self.now_s) == self.may()
        assert self.breaker.wait_s(self.now_s) == (
            max(0.0, self.until_s - self.now_s) if self.state is State.OPEN else 0.0
        )
        assert self.changes == self.expected


TestBreakerModel = BreakerModel.TestCase
