"""The suite itself refuses connections to other machines, and allows those to this one."""

from __future__ import annotations

import socket

import pytest


def test_other_machines_are_refused() -> None:
    # An address reserved for documents, which belongs to nobody.
    with socket.socket() as connection, pytest.raises(OSError, match="no network"):
        connection.connect(("192.0.2.1", 80))


def test_this_machine_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as connection:
        connection.connect(server.getsockname())
