"""A lock on a folder, held by one process as long as it lives."""

import contextlib
import glob
import os
from typing import Iterator

from tood.utils.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows: no lock
    fcntl = None

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold the lock of an existing folder, and remove what a killed process has left half-written.

    Raises:
        UserError: where another process that lives holds it.
    """
    if fcntl is None or "://" in folder:
        yield
        return
    path = os.path.join(folder, LOCK_FILE)
    with open(path, "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            f.seek(0)
            raise UserError(
                f"Another training writes to {folder} (process {f.read().strip() or 'unknown'}); "
                "wait for it, stop it, or name another folder with OUTPUT_DIR."
            ) from error
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        for part in glob.glob(os.path.join(glob.escape(folder), "*.part")):
            os.remove(part)
        try:
            yield
        finally:
            f.truncate(0)
