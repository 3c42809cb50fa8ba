"""Signals of a process: at once, deferred, and the second and third of them."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import contextlib, sys, time
from toco import interrupts
interrupts.install_handlers()
block = interrupts.deferred() if sys.argv[1] == "deferred" else contextlib.nullcontext()
def sleep():
    for _ in range(600):
        time.sleep(0.05)
try:
    with block:
        print("ready", flush=True)
        for _ in range(600):
            time.sleep(0.05)
            if interrupts.was_received():
                print("asked", flush=True)
                break
        sleep()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sleep()
"""


def start(mode):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_first_signal_interrupts_and_a_second_one_ends(number):
    process = start("plain")
    process.send_signal(number)
    assert process.stdout.readline() == "interrupted\n"
    time.sleep(1.1)  # signals within a second count as one
    process.send_signal(number)
    assert process.wait(10) == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_deferred_signal_only_asks_the_second_interrupts_and_the_third_ends(number):
    process = start("deferred")
    process.send_signal(number)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(number)  # `timeout` signals a process and its group
    time.sleep(1.1)
    assert process.poll() is None
    process.send_signal(number)
    assert process.stdout.readline() == "interrupted\n"
    time.sleep(1.1)
    process.send_signal(number)
    assert process.wait(10) == 128 + number


def test_another_thread_interrupts_also_where_signals_are_deferred():
    program = """
import threading, time
from toco import interrupts
interrupts.install_handlers()
try:
    with interrupts.deferred():
        threading.Timer(0.2, interrupts.interrupt_main).start()
        for _ in range(200):
            time.sleep(0.05)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=15, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


def test_blocked_signals_reach_neither_processes_nor_threads_of_the_block():
    program = """
import multiprocessing, os, signal, subprocess, sys, threading
from toco.processes import signals_blocked
def mask():
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())
found = []
with signals_blocked([signal.SIGTERM, signal.SIGUSR1]):
    code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    print(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
    thread = threading.Thread(target=lambda: found.append(sorted(mask())))
    thread.start(); thread.join()
    # A start of processes may start the resource tracker, which unblocks SIGTERM.
    context = multiprocessing.get_context("spawn")
    context.Event()
    found.append(sorted(mask()))
print(*found, sorted(mask()), sep="\\n")
"""
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    blocked = str(sorted([signal.SIGTERM, signal.SIGUSR1]))
    assert output.splitlines() == [blocked, blocked, blocked, "[]"]
