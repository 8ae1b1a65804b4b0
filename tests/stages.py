"""Runs the program in processes that receive signals at given stages."""

import functools
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time


def run_program(python, argv, log, stages=()):
    """Run ``tood ARGV`` in a group of processes, as a shell does; return its exit status and what
    it has printed.

    Args:
        python: the executable of :mod:`warm`.
        stages: (function, number of its call, signal, seconds to wait before) of each signal to
            the whole group, which comes at the call, or at its end for "FUNCTION."; SIGKILL is
            for its newest worker alone.
    """
    group = log.with_suffix(".group")
    job = {"argv": argv, "group": str(group), "stages": list(stages), "python": sys.executable}
    with open(log, "wb") as f:
        command = [python, __file__, json.dumps(job)]
        streams = dict(stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT)
        status = subprocess.run(command, **streams).returncode
    for _ in range(100):  # its workers end with it
        try:
            os.killpg(int(group.read_text()), 0)
        except ProcessLookupError:
            return status, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"a process of {argv} is left")


def start(argv, group, stages, python):
    from tood.app import cli

    os.setsid()
    with open(group, "w") as f:
        f.write(str(os.getpid()))
    for stage in stages:
        signal_at(*stage)
    sys.argv = ["tood/__main__.py", *argv]  # as of python -m tood
    sys.orig_argv = [python, "-m", "tood", *argv]
    sys.exit(cli.main(argv))


def signal_at(at, call, number, seconds):
    module, _, name = at.partition(":")
    owner, is_after = importlib.import_module(module), name.endswith(".")
    *path, name = name.rstrip(".").split(".")
    owner = functools.reduce(getattr, path, owner)
    function, calls, pid = getattr(owner, name), itertools.count(1), os.getpid()

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        is_now = os.getpid() == pid and next(calls) == call
        if is_now and not is_after:
            send()
        result = function(*args, **kwargs)
        if is_now and is_after:
            send()
        return result

    def send():
        time.sleep(seconds)
        if number == signal.SIGKILL:
            newest = max(multiprocessing.active_children(), key=lambda worker: worker.pid)
            newest.kill()
            return newest.join()
        kill = ["kill", f"-{number}", "--", f"-{os.getpgrp()}"]
        # Not by this process: its workers know its signals.
        subprocess.run(kill, start_new_session=True, check=True)

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    start(**json.loads(sys.argv[1]))
