"""Blocks the network for a Python process: only addresses of this machine can be reached.

An attempt raises what a machine without a network raises, and is written to a file, so that it is
seen even if a library does without.
"""

import errno
import os
import re
import socket
import traceback

LOG = "TOOD_TESTS_NETWORK_LOG"  # environment variable: the path of the file
REPLACED = [(socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")]
HERE = (None, "", "localhost", "::1", "::", "0.0.0.0", socket.gethostname())


def block_sockets():
    """Replace what finds and connects addresses."""
    for holder, name in REPLACED:
        setattr(holder, name, _allow_here(getattr(holder, name), is_method=holder is not socket))


def _allow_here(function, is_method):
    def call(*args, **kwargs):
        address = args[is_method] if len(args) > is_method else kwargs["host"]
        if not is_here(address):
            with open(os.environ[LOG], "a") as f:
                f.write(f"{address}\n{''.join(traceback.format_stack(limit=12))}\n")
            raise OSError(errno.ENETUNREACH, f"Tests have no network: {address}")
        return function(*args, **kwargs)

    return call


def is_here(address):
    """Tell whether an address, or a host, is one of this machine."""
    if isinstance(address, tuple):
        address = address[0]
    elif isinstance(address, (str, bytes)) and os.fsdecode(address).startswith(("/", "\0")):
        return True  # a Unix socket
    host = os.fsdecode(address) if isinstance(address, bytes) else address
    return host in HERE or bool(re.fullmatch(r"127(\.\d+){3}", host))
