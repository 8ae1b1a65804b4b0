"""Errors that users can repair, in one sentence each."""

import atexit
import contextlib
import errno
import functools
import gc
import re
import signal
import sys
from typing import Callable, Iterator, Optional

from tood.utils.signals import Stopped, exit_at_signals, handled, mark_resumable

WIDTH = 80  # characters of a terminal


class UserError(Exception):
    """Its message names the file, key or value that is wrong, and says what to do.

    Raised in a data loader's worker or in one of several training processes, it arrives with a
    traceback around its message; :meth:`sentence` is the message alone.
    """

    def sentence(self) -> str:
        message = str(self).strip()
        _, marker, inner = message.rpartition(f"\n{type(self).__module__}.{type(self).__name__}: ")
        return shorten(inner.strip() if marker else message, 1500)


def shorten(text: str, limit: int = 500) -> str:
    """Return a text, which may contain what a file states, as one line that can be printed."""
    text = " ".join(text.encode(errors="backslashreplace").decode().splitlines())
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def format_reason(error: BaseException, limit: int = 200) -> str:
    """Return the message of a library's error for use in a sentence: one line of at most ``limit``
    characters, without terminal codes and addresses of objects.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r" (at|of)? ?<[^<>]* (object )?at 0x[0-9a-f]+>|<_io\.\S+ [^<>]*>", "", text)
    return " ".join(text.split())[:limit].rstrip(" .!:") or type(error).__name__


class OutOfMemory(UserError):
    """There is not enough memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, PyTorch, CUDA or OpenCV says that memory is short."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and bool(_OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def guard_memory(remedy: str) -> Iterator[None]:
    """Report that memory is short as "There is not enough memory (REASON); REMEDY.".

    Raises:
        OutOfMemory: in place of such errors of any library.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        lines = [x for x in str(error).splitlines() if _OUT_OF_MEMORY.search(x)]
        reason = f" ({format_reason(RuntimeError(lines[-1]))})" if lines else ""
        raise OutOfMemory(f"There is not enough memory{reason}; {remedy}.") from error


def run_main(main: Callable[[], object], continue_by: Optional[Callable[[], str]] = None) -> None:
    """Call a program. A ``UserError`` or a file that cannot be used ends it with one sentence and
    exit status 1, a signal with one line and 128 + its number.

    Args:
        continue_by: returns the command that continues after a signal; printed in the last line.
    """
    mark_resumable(False)
    omit_last_search()
    try:
        with handled():
            _run(main)
    except Stopped as stopped:
        _end(stopped.number, continue_by() if continue_by else "")


@functools.cache
def omit_last_search() -> None:
    """Make Python end without searching all modules for garbage, which takes a second."""
    atexit.register(gc.freeze)


def _run(main: Callable[[], object]) -> None:
    if hasattr(sys.stdout, "reconfigure"):  # names of files may be in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with guard_memory("close other programs, or use smaller images"):
            main()
    except UserError as error:
        sys.exit(f"error: {error.sentence()}")
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
    except OSError as error:
        reason = error.strerror or format_reason(error)
        sys.exit(f"error: {error.filename or 'A file'} cannot be used ({reason}).")


def _end(number: int, command: str) -> None:
    atexit.register(exit_at_signals)  # without a traceback of the libraries' exit functions
    name = signal.Signals(number).name
    with contextlib.suppress(OSError, ValueError):  # the terminal is closed
        sys.stdout.flush()  # before the last line
        end = f"; continue with\n{command}" if command else "."
        print(f"error: stopped by {name}{end}", file=sys.stderr)
    sys.exit(128 + number)


_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|(can't|cannot|unable to|failed to) allocate|bad_alloc"
    r"|insufficient memory|can't start new thread|unable to mmap|shared memory\(shm\)",
    re.IGNORECASE,
)
