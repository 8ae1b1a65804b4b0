"""A Python that has imported the package before it begins, so that a process of the tests takes the
time of its work.

:func:`serve_python` starts a server, and makes an executable that is called like Python: it asks
the server for a process, which gets its arguments, environment, folder, streams and signals.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from pathlib import Path

from light import lighten

from tood.utils.errors import UserError

# What a training imports when it needs it.
LATE = ("timm", "torch.utils.tensorboard", "pycocotools.cocoeval", "tood.app.report.make")
MODULES = ("tood.app.train", "tood.app.cli", "detectron2.engine", *LATE)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIZE = struct.Struct("!q")  # of a request; the answer is a status
CLIENT = """import json, os, resource, signal, socket, struct, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
request = json.dumps({{
    "words": [{client!r}, *sys.argv[1:]], "folder": os.getcwd(), "environ": dict(os.environ),
    "file_size": resource.getrlimit(resource.RLIMIT_FSIZE),
}}).encode()
socket.send_fds(server, [struct.pack({size!r}, len(request))], [0, 1, 2])
server.sendall(request)
for number in {forwarded}:  # not before, or one would be a part of the request
    signal.signal(number, lambda number, frame: server.send(bytes([number])))
status = struct.unpack({size!r}, server.recv({length}))[0]
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextlib.contextmanager
def serve_python(folder):
    """Serve in another process; yield the path of the executable.

    Args:
        folder: an empty one, for the executable and the socket.
    """
    path, client, program = (str(folder / name) for name in ("socket", "python", "client.py"))
    texts = dict(client=client, path=path, size=SIZE.format, length=SIZE.size)
    Path(program).write_text(CLIENT.format(forwarded=[*map(int, FORWARDED)], **texts))
    begin = shlex.join([sys.executable, "-ISE", program])  # not after "#!", where a space ends it
    Path(client).write_text(f'#!/bin/sh\nexec {begin} "$@"\n')
    os.chmod(client, 0o755)
    paths = [str(Path(__file__).with_name("no_network")), *sys.path]  # before Debian's own
    environ = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(paths))
    command = [sys.executable, __file__, path]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, env=environ, **pipes) as server:
        assert server.stdout.readline() == b"ready\n"
        yield client
        server.stdin.close()


def serve(path):
    """Answer until the standard input ends, as it does when the tests end in any way."""
    gc.disable()
    for name in MODULES:
        with contextlib.suppress(ImportError):  # extras
            importlib.import_module(name)
    with contextlib.suppress(ImportError, UserError):
        from tood.modeling.backbone.timm_fpn import TimmBackbone

        TimmBackbone("tf_efficientnet_lite0")  # its structure is remembered
    lighten()
    gc.freeze()  # or each process would copy the memory of all modules
    gc.enable()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                os._exit(0)  # clearing up takes seconds
            client, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                answer(client)
            client.close()


def answer(client):
    """Start the process of a client, and watch both."""
    header, streams, _, _ = socket.recv_fds(client, SIZE.size, 3)
    (size,) = SIZE.unpack(header)
    text = b""
    while len(text) < size:
        part = client.recv(size - len(text))
        if not part:  # it was killed
            os._exit(1)
        text += part
    pid = os.fork()
    if pid == 0:
        client.close()
        end(functools.partial(run, streams, **json.loads(text)))
    found = 0
    while not found:
        ready, _, _ = select.select([client], [], [], 0.01)
        if ready:
            numbers = client.recv(16) or [signal.SIGKILL]  # the client was killed
            for number in numbers:
                os.kill(pid, number)
        found, status = os.waitpid(pid, os.WNOHANG)
    with contextlib.suppress(OSError):
        client.sendall(SIZE.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def end(main):
    """Call a function, and end as Python does, without clearing up all modules."""
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # waits
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


def run(streams, words, folder, environ, file_size):
    """Do what "python WORDS" does."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    resource.setrlimit(resource.RLIMIT_FSIZE, tuple(file_size))
    # As in a new process, also where the tests were started by nohup, or in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.executable, sys.orig_argv = words[0], list(words)
    if words[1] == "-u":  # of torchrun
        sys.stdout.reconfigure(write_through=True)
        del words[1]
    kind, *rest = words[1:]
    if kind == "-m":
        sys.argv, sys.path[0] = rest, folder
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], folder
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.argv, sys.path[0] = [kind, *rest], str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
