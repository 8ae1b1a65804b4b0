"""A lock on a folder, owned by one process until it ends."""

import contextlib
import errno
import glob
import logging
import os
from typing import Dict, Iterator, TextIO

from tood.utils.errors import UserError
from tood.utils.files import PART, check_folder

try:
    import fcntl
except ImportError:  # on Windows: no lock
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class LockedError(UserError):
    """Another training writes to the folder."""


LOCK_FILE = ".lock"
_BUSY = (errno.EACCES, errno.EAGAIN)
_OWNERS: Dict[str, int] = {}  # lock file -> the process that has it, this one or its parent


@contextlib.contextmanager
def locked(folder: str, key: str = "OUTPUT_DIR") -> Iterator[None]:
    """Lock a folder, which is made if necessary, and remove the half-written files that a killed
    process has left.

    The lock is POSIX's (``lockf``), which belongs to a process: loader workers and other children
    do not inherit it, so that it ends with a killed training even while they live. ``filelock``
    uses ``flock``, whose lock a forked child keeps (before its version 4), and erases the number of
    the process that has it from the file while it tries to acquire the lock.

    Args:
        key: the config key or flag that names the folder.

    Raises:
        LockedError: if another training has the lock; names its process.
        UserError: for a folder that cannot be written to.
    """
    if "://" in folder:
        yield
        return
    check_folder(folder, key)
    with contextlib.nullcontext() if fcntl is None else _locked(folder, key):
        for part in glob.glob(os.path.join(glob.escape(folder), f"*{PART}")):
            os.remove(part)
        yield


def refuse_locked(folder: str, key: str = "OUTPUT_DIR") -> None:
    """Raise LockedError for a folder that another training has locked. Nothing is written."""
    path = _find_lock_file(folder)
    if path in _OWNERS:  # closing a second descriptor of the file would end the lock
        raise _make_error(folder, key, str(_OWNERS[path]))
    if fcntl is not None and os.path.isfile(path):
        with contextlib.suppress(OSError), open(path, "r+") as f:
            _acquire(f, folder, key)


def is_locked(folder: str) -> bool:
    """Return whether another training has locked a folder."""
    try:
        refuse_locked(folder)
    except LockedError:
        return True
    return False


@contextlib.contextmanager
def _locked(folder: str, key: str) -> Iterator[None]:
    path = _find_lock_file(folder)
    if path in _OWNERS:  # POSIX does not distinguish the trainings of one process
        raise _make_error(folder, key, str(_OWNERS[path]))
    with _open_locked(path, folder, key) as f:
        _OWNERS[path] = os.getpid()
        try:
            f.truncate(0)
            f.write(str(os.getpid()))
            f.flush()
            yield
        finally:
            del _OWNERS[path]
            with contextlib.suppress(OSError):
                os.remove(path)  # before the lock ends with the file


def _open_locked(path: str, folder: str, key: str) -> TextIO:
    """Return the lock file, locked. Its previous owner removes it, perhaps between opening it and
    locking it here: then another file of this name counts.
    """
    while True:
        try:
            # Neither a pipe nor a device is waited for.
            f = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666), "r+")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not a file"
            raise UserError(
                f"The lock file {path} cannot be written ({reason}); remove it, or name another "
                f"folder with {key}."
            ) from error
        with contextlib.ExitStack() as stack:
            stack.enter_context(f)
            _acquire(f, folder, key)
            if os.path.exists(path) and os.path.samestat(os.fstat(f.fileno()), os.stat(path)):
                stack.pop_all()
                return f


def _acquire(f: TextIO, folder: str, key: str) -> None:
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise _make_error(folder, key, f.read().strip() or "unknown") from error
        logger.warning(
            f"The file system of {folder} has no locks ({error.strerror}): make sure that only one "
            "training writes there."
        )


def _find_lock_file(folder: str) -> str:
    return os.path.join(os.path.realpath(folder), LOCK_FILE)


def _make_error(folder: str, key: str, process: str) -> LockedError:
    return LockedError(
        f"Another training writes to {folder} (process {process}); wait for it, stop it, or name "
        f"another folder with {key}."
    )
