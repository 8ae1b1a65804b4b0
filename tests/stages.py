"""Runs the program in processes that receive signals at given stages.

As a script, it has imported the package before it reads jobs: each takes the time of its work.
"""

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

# What a training imports when it needs it.
LATE = ("timm", "torch.utils.tensorboard", "pycocotools.cocoeval", "tood.app.report.make")


class Starter:
    """Starts the program in a group of processes, one after the other, as a shell does."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path)),
        )

    def run(self, argv, log, stages=()):
        """Run ``tood ARGV``; return its exit status and what it has printed.

        Args:
            stages: (function, number of its call, signal, seconds to wait before) of each signal to
                the whole group, which comes at the call, or at its end for "FUNCTION."; SIGKILL is
                for its newest worker alone.
        """
        job = {"argv": argv, "log": str(log), "stages": list(stages)}
        print(json.dumps(job), file=self.server.stdin, flush=True)
        pid, status = json.loads(self.server.stdout.readline())
        for _ in range(100):  # its workers end with it
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"a process of {argv} is left")
        return status, log.read_text()

    def close(self):
        self.server.stdin.close()
        self.server.wait(timeout=60)


def serve():
    # Where the tests were started by nohup, or in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for module in ("tood.app.train", "tood.app.cli", "detectron2.engine", *LATE):
        importlib.import_module(module)
    TimmBackbone = importlib.import_module("tood.modeling.backbone.timm_fpn").TimmBackbone
    TimmBackbone("tf_efficientnet_lite0")  # its structure is remembered
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return start(**json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([pid, status]), flush=True)


def start(argv, log, stages):
    from tood.app import cli

    os.setsid()
    for path, flags, *numbers in (
        (os.devnull, os.O_RDONLY, 0),
        (log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1, 2),
    ):
        opened = os.open(path, flags)
        for number in numbers:
            os.dup2(opened, number)
    for stage in stages:
        signal_at(*stage)
    sys.argv = ["tood/__main__.py", *argv]  # as of python -m tood
    sys.orig_argv = [sys.executable, "-m", "tood", *argv]
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
    serve()
