"""Listening sockets, and what they let in."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any

import pytest

from asr_ws.server import door
from asr_ws.server.door import CONNECTIONS_BESIDE, FULL_RESPONSE, Door


def counting(max_sessions: int, *shared: str, encrypted: bool = False) -> tuple[Door, list[str]]:
    turned_away: list[str] = []
    return Door(
        max_sessions,
        encrypted=encrypted,
        is_shared=lambda address: address in shared,
        on_turned_away=turned_away.append,
    ), turned_away


async def test_a_name_of_several_addresses_is_listened_to_on_one_port() -> None:
    listening = await counting(1)[0].open("localhost", 0)
    assert len({each.getsockname()[1] for each in listening}) == 1
    assert {each.family for each in listening} <= {socket.AF_INET, socket.AF_INET6}
    for each in listening:
        each.close()


async def test_an_address_that_this_machine_lacks_is_passed_over_if_there_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind = socket.socket.bind

    def without_ipv6(self: socket.socket, address: Any) -> None:
        if address[0] == "::1":
            raise OSError(errno.EADDRNOTAVAIL, "no IPv6 here")
        bind(self, address)

    monkeypatch.setattr(door._Listening, "bind", without_ipv6, raising=False)
    (listening,) = await counting(1)[0].open("localhost", 0)
    assert listening.family == socket.AF_INET
    with listening, pytest.raises(OSError, match="no IPv6 here"):
        await counting(1)[0].open("::1", 0)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        await counting(1)[0].open("localhost", other.getsockname()[1])


@pytest.mark.skipif(sys.platform == "win32", reason="accepts past Python there")
@pytest.mark.parametrize(("encrypted", "answer"), [(False, FULL_RESPONSE), (True, b"")])
async def test_an_address_has_half_of_the_room_and_who_leaves_makes_some(encrypted: bool, answer: bytes) -> None:
    entrance, turned_away = counting(1, encrypted=encrypted)
    assert entrance.max_connections == 2 + CONNECTIONS_BESIDE
    (listening,) = await entrance.open("127.0.0.1", 0)
    listening.listen(2 * entrance.max_connections)
    listening.setblocking(False)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(entrance.max_per_address + 1)]
    guests = [listening.accept()[0] for _ in clients[1:]]
    with pytest.raises(BlockingIOError):
        listening.accept()
    assert turned_away == ["127.0.0.1"]
    assert clients[-1].recv(1000) == answer
    guests.pop().close()
    with socket.create_connection(listening.getsockname()), listening.accept()[0]:
        assert turned_away == ["127.0.0.1"]
    for each in (*clients, *guests, listening):
        each.close()


@pytest.mark.skipif(sys.platform == "win32", reason="accepts past Python there")
async def test_a_proxy_may_have_all_the_room() -> None:
    entrance, turned_away = counting(1, "127.0.0.1")
    (listening,) = await entrance.open("127.0.0.1", 0)
    listening.listen(2 * entrance.max_connections)
    listening.setblocking(False)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(entrance.max_connections)]
    guests = [listening.accept()[0] for _ in clients]
    assert turned_away == []
    for each in (*clients, *guests, listening):
        each.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_half_of_the_descriptors_are_left_and_the_limit_is_raised_no_further_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import resource

    limits = {"now": (256, 1000)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, wanted: limits.update(now=wanted))
    assert counting(8)[0].max_connections == 80
    assert limits["now"] == (256, 1000), "enough already"
    assert counting(100)[0].max_connections == 264
    assert limits["now"] == (528, 1000)
    assert counting(1000)[0].max_connections == 500
    assert limits["now"] == (1000, 1000)
