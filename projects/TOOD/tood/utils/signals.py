"""Signals that end a program: Ctrl-C, SIGTERM of schedulers, SIGHUP of a closed terminal."""

import contextlib
import os
import signal
import threading
import time
from typing import Callable, Iterator

SIGNALS = [getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, x)]
# Seconds within which signals are one: timeout(1) sends its signal to a program and then to its
# group, torchrun passes on what its processes have received as well.
TOGETHER = 1.0
_last = [-TOGETHER]  # when the last signal was received
_resumable = [False]


class Stopped(SystemExit):
    """Ends a program after a signal, with the exit status that shells expect: 128 + its number."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


def stop(number: int) -> None:
    """Raise KeyboardInterrupt for Ctrl-C, which libraries know, and Stopped for other signals."""
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)


def mark_resumable(value: bool = True) -> None:
    """Note whether --resume continues what this program has begun."""
    _resumable[0] = value


def is_resumable() -> bool:
    """Return what was noted last."""
    return _resumable[0]


def is_main_thread() -> bool:
    """Return whether this is the one thread that may set handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def handled(receive: Callable[[int], None] = stop) -> Iterator[None]:
    """Call a function with the number of each signal meanwhile, in place of the handlers before.

    Nothing changes in threads, which cannot handle signals, and for signals that are ignored, as
    ``nohup`` wants it. Processes that are started meanwhile inherit the handlers, and do nothing.
    """
    if not is_main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, _frame) -> None:
        now = time.monotonic()
        if os.getpid() == process and now - _last[0] >= TOGETHER:
            _last[0] = now
            receive(number)

    ignored = (signal.SIG_IGN, None)  # None: not of Python
    numbers = [x for x in SIGNALS if signal.getsignal(x) not in ignored]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_at_signals() -> None:
    """Make a further signal end this process at once, with the same exit status."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: os._exit(128 + number))


def end_with_parent() -> None:
    """Make this process, a worker, end when its parent ends or terminates it, and never by a signal
    to the whole group of processes: the parent decides when to stop.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    import multiprocessing  # here: it takes time to import

    parent, starter = os.getppid(), multiprocessing.parent_process()
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and starter is not None and received.si_pid == starter.pid:
            break
    os._exit(0)  # as PyTorch's workers do when they are terminated
