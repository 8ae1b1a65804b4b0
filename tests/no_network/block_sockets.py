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
# Functions, and the place of the address among their arguments.
REPLACED = [
    (socket.socket, "connect", 1),
    (socket.socket, "connect_ex", 1),
    (socket.socket, "sendto", -1),
    (socket, "getaddrinfo", 0),
    (socket, "gethostbyname", 0),
]
HERE = (None, "", "localhost", "::1", "::", "0.0.0.0", socket.gethostname())


def block_sockets():
    """Replace what finds and connects addresses."""
    for holder, name, place in REPLACED:
        setattr(holder, name, _allow_here(getattr(holder, name), place))


def _allow_here(function, place):
    def call(*args, **kwargs):
        address = args[place] if args else kwargs["host"]
        if not is_here(address):
            with open(os.environ[LOG], "a") as f:
                f.write(f"{address}\n{''.join(traceback.format_stack(limit=12))}\n")
            raise OSError(errno.ENETUNREACH, f"Tests have no network: {address}")
        return function(*args, **kwargs)

    return call


def is_here(address):
    """Tell whether an address, or a host, is one of this machine."""
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = os.fsdecode(host)
    if isinstance(host, int):  # of a family within this machine, such as netlink
        return True
    if host in HERE or re.fullmatch(r"127(\.\d+){3}", host):
        return True
    return not isinstance(address, tuple) and host.startswith(("/", "\0"))  # a Unix socket
