import threading

import pytest

from worldmodel.driving.workers import SimulatedWorker, ThreadWorker

TIMEOUT_S = 60.0  # only ever reached by a test that fails


def wait_for(worker: ThreadWorker):
    for _ in range(round(TIMEOUT_S / 0.01)):
        result = worker.take()
        if result is not None:
            return result
        threading.Event().wait(0.01)
    raise AssertionError("nothing came of the work")


def test_a_thread_works_while_others_go_on() -> None:
    go = threading.Event()

    def work(number: int) -> int:
        assert go.wait(TIMEOUT_S)
        return 10 * number

    worker = ThreadWorker(work)
    assert not worker.busy and worker.take() is None
    worker.give(3)
    assert worker.busy and worker.take() is None  # and this thread was not held up
    go.set()
    assert wait_for(worker) == 30
    assert not worker.busy and worker.take() is None
    worker.give(4)
    assert wait_for(worker) == 40
    worker.close()
    worker._thread.join(TIMEOUT_S)
    assert not worker._thread.is_alive()


def test_what_the_work_raises_is_raised_where_it_is_taken() -> None:
    def work(number: int) -> int:
        raise ValueError(f"no {number}")

    worker = ThreadWorker(work)
    worker.give(7)
    with pytest.raises(ValueError, match="no 7"):
        wait_for(worker)
    assert not worker.busy
    worker.give(8)  # and it goes on
    with pytest.raises(ValueError, match="no 8"):
        wait_for(worker)
    worker.close()


def test_a_simulated_worker_has_its_result_when_a_planner_would() -> None:
    now = 0.0
    worker = SimulatedWorker(lambda number: 10 * number, latency_s=0.2, clock=lambda: now)
    worker.give(1)
    assert worker.busy and worker.take() is None
    now = 0.19
    assert worker.take() is None
    now = 0.2
    assert worker.take() == 10
    assert not worker.busy and worker.take() is None
