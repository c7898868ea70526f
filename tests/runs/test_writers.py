import threading

import pytest

from dag_jax.runs.writers import Writers


def test_other_threads_write_all_of_it():
    written = []

    def write(number, text):
        written.append((number, text, threading.current_thread() is threading.main_thread()))

    with Writers(write) as writers:
        for number in range(20):
            writers.submit(number, str(number))
    assert sorted(written) == [(number, str(number), False) for number in range(20)]


def test_few_wait_at_a_time():
    go, started = threading.Semaphore(0), []

    def write(number):
        started.append(number)
        assert go.acquire(timeout=60)

    with Writers(write) as writers:
        for number in range(4):
            writers.submit(number)
        fifth = threading.Thread(target=writers.submit, args=(4,))
        fifth.start()
        fifth.join(0.2)
        assert fifth.is_alive() and len(started) == 2
        go.release(5)
        fifth.join(60)
        assert not fifth.is_alive()
    assert sorted(started) == list(range(5))


def test_what_was_submitted_is_written_whatever_ends_the_block():
    written = []
    with pytest.raises(KeyboardInterrupt), Writers(written.append) as writers:
        for number in range(4):
            writers.submit(number)
        raise KeyboardInterrupt
    assert sorted(written) == [0, 1, 2, 3]


def test_an_error_of_one_is_raised_and_the_others_are_written():
    written = []

    def write(number):
        if number == 1:
            raise OSError(28, "No space left on device")
        written.append(number)

    with pytest.raises(OSError, match="No space"), Writers(write) as writers:
        for number in range(100):
            writers.submit(number)
    assert written[:2] == [0, 2] and len(written) < 99
    written.clear()
    with pytest.raises(OSError, match="No space"), Writers(write) as writers:
        for number in range(2):
            writers.submit(number)
    assert written == [0]
