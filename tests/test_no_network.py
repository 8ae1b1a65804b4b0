"""The block that makes tests fail if something asks the network."""

import os
import socket
import subprocess
import sys

import pytest
from block_sockets import is_here

FAR = ("192.0.2.1", 80)  # an address for documentation (RFC 5737): nobody has it
CODE = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError:
    pass  # as libraries that do without
"""


@pytest.fixture
def attempts(network_log):
    """Reads the attempts, and forgets them."""

    def read():
        text = network_log.read_text()
        os.truncate(network_log, 0)
        return text

    return read


def connect():
    with socket.socket() as s, pytest.raises(OSError, match="no network"):
        s.settimeout(1)
        s.connect(FAR)


def test_an_attempt_of_this_process_is_seen(attempts):
    connect()
    for ask in (
        lambda: socket.getaddrinfo("a.example", 80),
        lambda: socket.gethostbyname("b.example"),
    ):
        with pytest.raises(OSError, match="no network"):
            ask()
    with socket.socket(type=socket.SOCK_DGRAM) as s, pytest.raises(OSError, match="no network"):
        s.sendto(b"a", ("192.0.2.2", 80))
    text = attempts()
    for address in ("192.0.2.1", "192.0.2.2", "a.example", "b.example", "in connect"):
        assert address in text


def test_an_attempt_of_another_process_is_seen(attempts):
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert not done.stderr and "192.0.2.1" in attempts()


def test_this_machine_can_be_asked():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


@pytest.mark.parametrize("address", [("127.0.0.1", 1), "/run/a.socket", "\0a", None, b"localhost"])
def test_here(address):
    assert is_here(address)


@pytest.mark.parametrize(
    "address", [FAR, "example.com", ("2001:db8::1", 80, 0, 0), "127example.com"]
)
def test_elsewhere(address):
    assert not is_here(address)
