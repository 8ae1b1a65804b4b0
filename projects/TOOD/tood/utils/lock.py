"""A lock on a folder, held by one process while it lives."""

import contextlib
import glob
import os
from typing import Dict, Iterator

from tood.utils.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows: no lock
    fcntl = None

LOCK_FILE = ".lock"
_OWNERS: Dict[str, int] = {}  # lock file -> the process that has it, this one or its parent


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Lock an existing folder, and remove the half-written files that a killed process has left.

    The lock is POSIX's (``lockf``), which belongs to a process: loader workers and other children
    do not inherit it, so that it ends with a killed training even while they live. ``filelock``
    uses ``flock``, whose lock a forked child keeps (before its version 4), and erases the number of
    the process that has it from the file while it tries to acquire the lock.

    Raises:
        UserError: if another training has the lock; names its process.
    """
    if fcntl is None or "://" in folder:
        yield
        return
    path = os.path.join(os.path.realpath(folder), LOCK_FILE)
    if path in _OWNERS:  # POSIX does not tell the trainings of one process apart
        raise _busy(folder, _OWNERS[path])
    with open(path, "a+") as f:
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            f.seek(0)
            raise _busy(folder, f.read().strip() or "unknown") from error
        _OWNERS[path] = os.getpid()
        try:
            f.truncate(0)
            f.write(str(os.getpid()))
            f.flush()
            for part in glob.glob(os.path.join(glob.escape(folder), "*.part")):
                os.remove(part)
            yield
        finally:
            f.truncate(0)
            del _OWNERS[path]


def _busy(folder: str, process) -> UserError:
    return UserError(
        f"Another training writes to {folder} (process {process}); wait for it, stop it, or name "
        "another folder with OUTPUT_DIR."
    )
