"""The lock of an output folder."""

import os
import signal
import subprocess
import sys

import pytest

from tood.utils.errors import UserError
from tood.utils.lock import LOCK_FILE, locked, refuse_locked

# Takes the lock, starts a child that lives on, and says who both are.
HOLDER = """
import os, sys, time
from tood.utils.lock import locked
with locked(sys.argv[1]):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of the folder, and its child."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process, child
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.communicate()


def test_the_living_process_is_named(holder, tmp_path):
    process, _ = holder
    (tmp_path / "a.pth.0123abcd.part").write_text("it writes this")
    for _ in range(2):
        says = rf"to {tmp_path} \(process {process.pid}\); wait"
        with pytest.raises(UserError, match=says), locked(str(tmp_path)):
            pass
    assert (tmp_path / "a.pth.0123abcd.part").exists()


def test_children_of_a_killed_process_do_not_keep_the_lock(holder, tmp_path):
    process, child = holder
    (tmp_path / "a.pth.0123abcd.part").write_text("half of it")
    process.kill()
    process.wait()
    os.kill(child, 0)  # it lives
    with locked(str(tmp_path)):
        assert (tmp_path / LOCK_FILE).read_text() == str(os.getpid())
        assert not (tmp_path / "a.pth.0123abcd.part").exists()


def test_once_in_a_process(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with locked(str(tmp_path)):
        for folder in (tmp_path, tmp_path / "link"):
            says = rf"process {os.getpid()}"
            with pytest.raises(UserError, match=says), locked(str(folder)):
                pass
    with locked(str(tmp_path)), locked("s3://bucket"), locked("s3://bucket"):
        pass


def test_the_lock_file_is_removed_and_what_is_none_is_named(tmp_path):
    with locked(str(tmp_path / "new")):
        assert (tmp_path / "new" / LOCK_FILE).exists()
        with pytest.raises(UserError, match=rf"process {os.getpid()}"):
            refuse_locked(str(tmp_path / "new"))
    assert not (tmp_path / "new" / LOCK_FILE).exists()
    refuse_locked(str(tmp_path / "new"))
    refuse_locked(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    os.mkfifo(tmp_path / LOCK_FILE)
    with pytest.raises(UserError, match="cannot be written .*; remove it"), locked(str(tmp_path)):
        pass


def test_who_waited_for_a_lock_file_that_is_removed(tmp_path, monkeypatch):
    """The last owner removes its file after another process has opened it: a new file counts."""
    opened, fdopen = [], os.fdopen

    def open_and_lose(descriptor, mode):
        opened.append(descriptor)
        if len(opened) == 1:
            os.remove(tmp_path / LOCK_FILE)
        return fdopen(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", open_and_lose)
    with locked(str(tmp_path)):
        assert len(opened) >= 2 and (tmp_path / LOCK_FILE).read_text() == str(os.getpid())


def test_another_process_is_refused_without_a_trace(holder, tmp_path):
    process, _ = holder
    before = (tmp_path / LOCK_FILE).read_text()
    with pytest.raises(UserError, match=rf"process {process.pid}"):
        refuse_locked(str(tmp_path))
    assert (tmp_path / LOCK_FILE).read_text() == before
