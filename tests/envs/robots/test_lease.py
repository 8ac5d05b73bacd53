import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.robots.clock_offset import ClockOffset
from worldmodel.envs.robots.lease import Lease


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease(clock):
    return Lease(silence_s=1.5, rearm_after_s=5.0, clock=clock)


def test_one_has_it_at_a_time(lease):
    assert lease.is_free(shown=None)
    session, goes_on = lease.take(shown=None)
    assert not goes_on  # nobody was there before
    assert not lease.is_free(shown=None)
    assert not lease.is_free(shown="a" * 32)
    lease.give_back("a" * 32)
    assert not lease.is_free(shown=None)
    lease.give_back(session)
    assert lease.is_free(shown=None)


def test_who_shows_its_session_takes_it_over_and_gets_another(lease):
    first, _ = lease.take(shown=None)
    assert lease.is_free(shown=first)
    second, goes_on = lease.take(shown=first)
    assert goes_on and second != first and lease.session == second
    lease.hear(first)  # an answer that was still under way when it was taken over
    assert lease.is_free(shown=first)
    lease.hear(second)
    assert not lease.is_free(shown=first)
    lease.give_back(first)  # the old connection ends at last
    assert lease.session == second


@pytest.mark.parametrize("given_back", [True, False])
def test_who_never_learnt_its_new_session_shows_the_old_one_again(lease, given_back):
    first, _ = lease.take(shown=None)
    lease.hear(first)
    for _ in range(3):  # the network is cut each time before the greeting arrives
        lost, goes_on = lease.take(shown=first)
        assert goes_on and lost != first
        if given_back:
            lease.give_back(lost)
    second, goes_on = lease.take(shown=lost)  # this greeting arrived, the question after it did not
    assert goes_on
    lease.hear(second)
    assert not lease.is_free(shown=first) and not lease.is_free(shown=lost)
    lease.give_back(second)
    assert not lease.take(shown=lost)[1]


def test_a_stranger_ends_what_was_known_before(lease):
    first, _ = lease.take(shown=None)
    unheard, _ = lease.take(shown=first)
    lease.give_back(unheard)
    stranger, goes_on = lease.take(shown=None)
    assert not goes_on and not lease.is_free(shown=first) and not lease.is_free(shown=unheard)
    lease.give_back(stranger)
    assert not lease.take(shown=first)[1]


def test_it_goes_on_after_it_was_given_back(lease, clock):
    first, _ = lease.take(shown=None)
    lease.give_back(first)
    clock.now += 4.9
    assert lease.take(shown=first)[1]


@pytest.mark.parametrize("given_back", [True, False])
def test_after_a_long_time_it_does_not_go_on(lease, clock, given_back):
    first, _ = lease.take(shown=None)
    if given_back:
        lease.give_back(first)
    clock.now += 5.1
    assert lease.is_overdue
    assert not lease.take(shown=first)[1]
    assert not lease.is_overdue


def test_a_stranger_does_not_go_on(lease):
    first, _ = lease.take(shown=None)
    lease.give_back(first)
    second, goes_on = lease.take(shown=None)
    assert not goes_on
    lease.give_back(second)
    assert not lease.take(shown=first)[1]  # somebody else was there meanwhile


def test_silence_counts_from_the_last_word(lease, clock):
    session, _ = lease.take(shown=None)
    clock.now += 1.4
    lease.hear(session)
    clock.now += 1.4
    assert not lease.is_silent
    lease.hear("a" * 32)  # of somebody else
    clock.now += 0.2
    assert lease.is_silent and not lease.is_overdue


@pytest.mark.parametrize("silence_s, rearm_after_s", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_its_times_must_make_sense(silence_s, rearm_after_s):
    with pytest.raises(ValueError, match="expected 0 < silence_s <= rearm_after_s"):
        Lease(silence_s=silence_s, rearm_after_s=rearm_after_s)


# The clock of the other machine.


@settings(deadline=None)
@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=20),
)
def test_the_offset_is_as_exact_as_it_says(offset, exchanges):
    clocks, now = ClockOffset(), 100.0
    assert not clocks.is_known and clocks.error_s == float("inf")
    for there, back, work in exchanges:
        came = now + there + offset
        clocks.add(
            sent_at=now,
            came_at=came,
            answered_at=came + work,
            received_at=now + there + work + back,
        )
        now += 10.0
    assert clocks.is_known
    assert abs(clocks.offset_s - offset) <= clocks.error_s + 1e-6
    kept = exchanges[-16:]
    assert clocks.error_s == pytest.approx(min(t + b for t, b, _ in kept) / 2, abs=1e-6)


def test_an_offset_that_drifts_is_followed():
    clocks = ClockOffset()
    for i in range(100):
        there = i * 1.001 + 5.0
        clocks.add(sent_at=i, came_at=there, answered_at=there, received_at=i)
    assert clocks.offset_s == pytest.approx(5.0 + 0.099, abs=0.02)
    clocks.forget()
    assert not clocks.is_known and clocks.offset_s == 0.0
