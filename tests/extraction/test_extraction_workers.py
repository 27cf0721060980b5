"""Order, back-pressure, and what happens when a worker dies."""

import os
import time

import pytest

from alignvl_cli.distributed import choose_workers, started_workers
from alignvl_cli.errors import DataError

pytestmark = pytest.mark.slow


def slow_square(number, seconds):
    time.sleep(seconds)
    return number * number


def die(number):
    os._exit(number)


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_the_order_of_the_tasks(count):
    tasks = [(f"tag {n}", (n, 0.05 if n % 3 == 0 else 0)) for n in range(8)]
    with started_workers(count) as workers:
        results = list(workers.map(slow_square, tasks, ahead=4))
    assert results == [(f"tag {n}", n * n) for n in range(8)]


@pytest.mark.parametrize("count", [0, 1])
def test_no_more_tasks_are_drawn_than_allowed_ahead(count):
    drawn = []

    def tasks():
        for n in range(100):
            drawn.append(n)
            yield n, (n, 0)

    with started_workers(count) as workers:
        results = workers.map(slow_square, tasks(), ahead=3)
        assert next(results) == (0, 0)
        assert len(drawn) <= 4
        assert next(results) == (1, 1)
        assert len(drawn) <= 5


def test_a_dead_worker_is_an_error_and_not_a_wait_for_ever():
    with started_workers(1) as workers, pytest.raises(DataError, match="--workers"):
        list(workers.map(die, [(None, (3,))], ahead=1))


def test_the_number_of_workers_is_as_asked_or_by_machine_and_size(monkeypatch):
    monkeypatch.setattr("alignvl_cli.distributed.usable_cores", lambda: 4)
    assert choose_workers(5, 10) == 5
    assert choose_workers(0, 10**6) == 0
    assert choose_workers(None, 100) == 0
    assert choose_workers(None, 10**6) == 3
    monkeypatch.setattr("alignvl_cli.distributed.usable_cores", lambda: 64)
    assert choose_workers(None, 10**6) == 8
    monkeypatch.setattr("alignvl_cli.distributed.usable_cores", lambda: 2)
    assert choose_workers(None, 10**6) == 0
