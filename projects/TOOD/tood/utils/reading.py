"""The guard at every file that users bring: regular files of a bounded size are read, and any
error of a parser is reported in one sentence that names the file.
"""

import contextlib
import math
import numbers
import os
import stat
import unicodedata
from typing import Any, BinaryIO, Dict, Iterable, Iterator, Optional, Tuple

from tood.utils.errors import UserError, format_reason

MiB = 2**20
MAX_TEXT = 1024 * MiB  # size of an annotation file; COCO's largest has 450 MiB
MAX_CONFIG = 1 * MiB
MAX_LABEL = 16 * MiB  # of one image


def compose(name: str) -> str:
    """Return the name of a class with composed letters: macOS writes an accent behind its letter,
    which looks the same.
    """
    return unicodedata.normalize("NFC", name)


@contextlib.contextmanager
def guard_reading(path: str, remedy: str = "correct it, or name another file") -> Iterator[None]:
    """Report any error of reading or parsing a file as "PATH cannot be read: REASON; REMEDY.".

    Put the parser alone below it, not the work on what was parsed: an error of the program itself
    must not be reported as one of the file.

    Raises:
        UserError: for every ``Exception``. A ``UserError`` passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except RecursionError as error:
        raise _refuse_depth(path, remedy) from error
    except Exception as error:  # parsers raise errors of any kind
        reason = getattr(error, "strerror", None) or format_reason(error)
        raise UserError(f"{path} cannot be read: {reason}; {remedy}.") from error


@contextlib.contextmanager
def guard_nesting(path: str, remedy: str = "export it again") -> Iterator[None]:
    """Report only that content is nested too deeply to be used, which a parser may accept."""
    try:
        yield
    except RecursionError as error:
        raise _refuse_depth(path, remedy) from error


def _refuse_depth(path: str, remedy: str) -> UserError:
    return UserError(f"{path} cannot be read: it is nested too deeply; {remedy}.")


class NotRegularError(OSError):
    """A pipe, a device or a folder in the place of a file."""


def open_at_once(path: str) -> BinaryIO:
    """Open a file for reading as ``open`` does, but without waiting for the writer of a pipe.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


@contextlib.contextmanager
def open_regular(path: str, limit: Optional[int] = None) -> Iterator[BinaryIO]:
    """Open a file for reading in binary mode. A pipe or a device is refused instead of waited for.

    Args:
        limit: largest size in bytes; default: any.

    Raises:
        UserError: if it does not exist, is not a regular file, or is too large.
    """
    with guard_reading(path):
        try:
            opened = open_at_once(path)
        except NotRegularError:
            raise UserError(f"{path} is not a regular file; name a file.") from None
    with opened as f:
        size = os.fstat(f.fileno()).st_size
        if limit is not None and size > limit:
            found = f"{size / MiB:,.1f} MiB"
            raise UserError(f"{path} has {found}; at most {limit / MiB:,.1f} MiB are read.")
        yield f


def read_regular(path: str, limit: int) -> bytes:
    """Return the content of a file of at most ``limit`` bytes; raises as ``open_regular``."""
    with open_regular(path, limit) as f, guard_reading(path):
        content = f.read(limit + 1)
    if len(content) > limit:  # it grew
        raise UserError(f"{path} has more than {limit / MiB:,.1f} MiB, which are read at most.")
    return content


def parse_number(value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number, which may be text.

    Raises:
        ValueError: for anything else, also for a bool, NaN, infinity, and a number outside of the
            range from ``low`` to ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{str(value)[:40]!r} is not a number") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{str(value)[:40]} is not a number from {low:g} to {high:g}")
    return number


def make_dict(pairs: Iterable[Tuple[str, Any]]) -> Dict[str, Any]:
    """Return the keys and values of a file as a dictionary.

    Raises:
        ValueError: if it has a key twice, whose first value would be lost.
    """
    made: Dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"it has the key {key[:40]} twice in one place")
        made[key] = value
    return made


_BINARY = getattr(os, "O_BINARY", 0)  # on Windows
