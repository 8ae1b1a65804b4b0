"""Python imports this file as it starts if its folder is in PYTHONPATH: the processes of tests."""

from block_sockets import block_sockets

block_sockets()
