"""The progress line, with a clock that the test turns."""

import io

from sweeps.core.run.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make(stream, num_trials=4, steps=100):
    clock = Clock()
    return Progress(
        "study", {f"t{number}": steps for number in range(num_trials)}, stream, clock
    ), clock


def test_counts_and_time_left():
    progress, clock = make(io.StringIO())
    assert (
        progress.line()
        == "study: 0/4 trials done, 0 running, 0 failed, 4 waiting, 0s elapsed, unknown time "
        "remaining"
    )
    progress.running({"t0", "t1"})
    clock.now += 50
    progress.reported("t0", 50)
    progress.reported("t1", 50)
    # 100 of 400 steps in 50 s.
    assert (
        progress.line()
        == "study: 0/4 trials done, 2 running, 0 failed, 2 waiting, 50s elapsed, about 2m30s "
        "remaining"
    )
    progress.ended("t0", failed=False)
    progress.ended("t1", failed=True)
    # 150 steps in 50 s; a failed trial has none left.
    assert (
        progress.line()
        == "study: 1/4 trials done, 0 running, 1 failed, 2 waiting, 50s elapsed, about 1m07s "
        "remaining"
    )


def test_steps_of_earlier_starts_do_not_make_this_one_look_fast():
    progress, clock = make(io.StringIO())
    progress.ended_before("t0")
    progress.resumed("t1", 50)
    clock.now += 30
    assert "unknown time remaining" in progress.line()
    progress.reported("t1", 60)
    # 10 steps in 30 s, 240 to go.
    assert (
        progress.line()
        == "study: 1/4 trials done, 0 running, 0 failed, 3 waiting, 30s elapsed, about 12m00s "
        "remaining"
    )


def test_a_restarted_trial_does_not_count_its_steps_twice():
    progress, clock = make(io.StringIO(), num_trials=1)
    clock.now += 10
    progress.reported("t0", 50)
    progress.reported("t0", 40)
    assert "about 10s remaining" in progress.line()


def test_a_log_file_gets_a_line_when_a_trial_ended_and_every_half_minute():
    stream = io.StringIO()
    progress, clock = make(stream)
    for _ in range(40):
        progress.running({"t0", "t1"})
        clock.now += 1
    assert len(stream.getvalue().splitlines()) == 2
    progress.ended("t0", failed=False)
    clock.now += 1
    progress.running({"t1", "t2"})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "1/4 trials done, 2 running" in lines[-1]


def test_a_terminal_keeps_one_line_and_messages_stay():
    stream = Terminal()
    progress, clock = make(stream)
    for _ in range(5):
        progress.running({"t0"})
        clock.now += 1
    progress.say("t0 is started again: its worker process is gone")
    progress.ended("t0", failed=False)
    progress.close()
    written = stream.getvalue()
    assert written.count("\n") == 2
    message, last = (line.split("\r")[-1] for line in written.split("\n")[:2])
    assert message.rstrip() == "t0 is started again: its worker process is gone"
    assert last.startswith("study: 1/4 trials done")
