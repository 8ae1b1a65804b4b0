"""Signals to one process: what its handlers do, and how a program ends."""

import os
import shlex
import signal
import subprocess
import sys
import threading

import pytest

from tood.utils import signals
from tood.utils.arguments import make_continue_command
from tood.utils.errors import run_main
from tood.utils.files import written_whole
from tood.utils.signals import SIGNALS, Stopped, handled


@pytest.fixture(autouse=True)
def long_ago(monkeypatch):
    """No test receives a second signal."""
    monkeypatch.setattr(signals, "_last", [-signals.TOGETHER])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_ends_with_one_line(number, capsys):
    before = [signal.getsignal(x) for x in SIGNALS]
    with pytest.raises(SystemExit) as end:
        run_main(lambda: signal.raise_signal(number))
    assert end.value.code == 128 + number
    assert capsys.readouterr().err == f"error: stopped by {signal.Signals(number).name}.\n"
    assert before == [signal.getsignal(x) for x in SIGNALS]


def test_the_last_line_continues(capsys):
    with pytest.raises(SystemExit):
        run_main(lambda: signal.raise_signal(signal.SIGTERM), continue_by=lambda: "tood train")
    assert capsys.readouterr().err.splitlines()[-1] == "tood train"


def test_ignored_signals_stay_ignored():
    """nohup requires it."""
    code = (
        "import signal; from tood.utils.errors import run_main\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "run_main(lambda: signal.raise_signal(signal.SIGHUP)); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_signals_of_a_moment_are_one():
    received = []
    with handled(received.append):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signals._last[0] -= signals.TOGETHER
        signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGTERM, signal.SIGINT]


def test_threads_change_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_a_stopped_writer_leaves_nothing(tmp_path, cause):
    """PyTorch's writer raises another error."""
    with pytest.raises(type(cause)), written_whole(str(tmp_path / "a.pth")) as f:
        f.write(b"half")
        raise RuntimeError("unexpected pos") from cause
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["train", "my photos"], "train --resume 'my photos'"),
        (["train", "a", "--resume"], "train a --resume"),
        (["--config-file", "a.yaml", "SEED", "1"], "--resume --config-file a.yaml SEED 1"),
    ],
)
def test_the_command_that_continues(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py", *argv])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "tools/train_net.py", *argv], raising=False)
    monkeypatch.setattr(signals, "_resumable", [False])
    assert make_continue_command(argv) == shlex.join(["python3", "tools/train_net.py", *argv])
    signals.mark_resumable()
    assert make_continue_command(argv) == f"python3 tools/train_net.py {expected}"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make_continue_command(["a"]) == "the same command and --resume"
