"""Who may come in: literals only."""

from __future__ import annotations

import ipaddress

import pytest

from asr_ws.core.access import Client, Origins, Tokens, bearer, client_of, is_proxy, owner
from asr_ws.errors import UsageError

LONG = "Zm9vYmFyYmF6cXV4"  # 16 characters
OTHER = "another-token-of-enough-letters"

# ---------------------------------------------------------------- tokens


def test_each_line_is_a_token_with_a_name_for_the_log() -> None:
    tokens = Tokens(f"# ours\n{LONG} the kitchen  # since May\n\n  {OTHER}\r\n")
    found = tokens.find(LONG), tokens.find(OTHER)
    assert [token and token.name for token in found] == ["the kitchen", "line 4"]
    assert LONG not in repr(found)


@pytest.mark.parametrize("wrong", ["", LONG[:-1], LONG + "a", LONG.lower(), f"{LONG} ", "é" * 16, "\ud800", "line 1"])
def test_what_is_no_token_is_not_found(wrong: str) -> None:
    assert Tokens(LONG).find(wrong) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no token in it"),
        ("# only\n\n", "no token in it"),
        (f"{LONG}\nshort", "line 2: a token has at least 16 characters"),
        ("pässwörterpässwörter", "line 1: a token is letters, digits and -._~+/"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_without_its_content(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Tokens(text)
    assert caught.value.message == message


def test_a_token_is_in_those_that_have_it_whatever_its_name() -> None:
    token = Tokens(f"{LONG} old").find(LONG)
    assert token is not None
    assert token in Tokens(f"{OTHER}\n{LONG} new")
    assert token not in Tokens(OTHER)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None),
        ("", None),
        (f"Bearer {LONG}", LONG),
        (f"bearer  {LONG} ", LONG),
        ("Bearer", ""),
        ("Basic dXNlcjpwYXNz", None),
        (LONG, None),
        (f"Bearer{LONG}", None),
    ],
)
def test_the_header_holds_a_token_after_bearer_only(header: str | None, token: str | None) -> None:
    assert bearer(header) == token


# ---------------------------------------------------------------- origins


def admits(origin: str, host: str, *allowed: str, any_name: bool = False) -> bool:
    origins = Origins(allowed, frozenset({"lab", "lab.local"}), any_name)
    return origins.admit([origin], host)


def test_what_is_no_web_page_has_no_origin_and_is_admitted() -> None:
    assert Origins((), frozenset(), any_name=False).admit([], "evil.example")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8765", "localhost:8765"),
        ("http://127.0.0.1:8765", "127.0.0.1:8765"),
        ("http://[::1]:8765", "[::1]:8765"),
        ("https://192.168.1.5:8765", "192.168.1.5:8765"),
        ("http://localhost", "localhost:80"),
        ("https://localhost", "LOCALHOST"),
        ("https://lab.local:8765", "lab.local:8765"),
        ("http://LAB:8765", "lab:8765"),
    ],
)
def test_a_page_of_this_very_server_is_admitted(origin: str, host: str) -> None:
    assert admits(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "localhost:8765"),
        ("", "localhost:8765"),
        ("*", "localhost:8765"),
        ("http://evil.example", "localhost:8765"),
        ("http://localhost", "localhost:8765"),
        ("http://localhost:87", "localhost:8765"),
        ("http://localhost:87650", "localhost:8765"),
        ("http://localhost:8765.evil.example", "localhost:8765"),
        ("http://localhost:8765@evil.example", "localhost:8765"),
        ("http://localhost:8765/", "localhost:8765"),
        ("http://localhost:8765?", "localhost:8765"),
        ("http://localhost:8765 ", "localhost:8765"),
        ("http://evil.example\\@localhost:8765", "localhost:8765"),
        ("localhost:8765", "localhost:8765"),
        ("file://localhost:8765", "localhost:8765"),
        ("http://127.0.0.1.evil.example", "127.0.0.1"),
        ("http://xlocalhost:8765", "localhost:8765"),
        ("http://localhost.:8765", "localhost:8765"),
        ("http://localhost:8765", ""),
        ("http://", ""),
        ("http://[::1", "[::1"),
    ],
)
def test_a_page_of_anywhere_else_is_not(origin: str, host: str) -> None:
    assert not admits(origin, host)
    assert not admits(origin, host, any_name=True)


def test_two_origins_are_none_that_is_admitted() -> None:
    origins = Origins(("http://a.example",), frozenset(), any_name=False)
    assert not origins.admit(["http://a.example", "http://a.example"], "localhost")


def test_a_name_that_strangers_may_point_here_is_admitted_only_behind_a_token() -> None:
    """DNS rebinding: the page's name and the host agree, and both are the attacker's."""
    rebound = "http://evil.example:8765", "evil.example:8765"
    assert not admits(*rebound)
    assert admits(*rebound, any_name=True)
    assert admits(*rebound, "http://evil.example:8765")


def admits_by_ports(origin: str, host: str, *, any_name: bool = False) -> bool:
    origins = Origins((), frozenset({"lab"}), any_name, own_ports=frozenset({9000, 9001}))
    return origins.admit([origin], host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:9000", "localhost:9001"),
        ("http://127.0.0.1:9000", "127.0.0.1:9001"),
        ("http://[::1]:9000", "[::1]:9001"),
        ("https://LAB:9000", "lab:9001"),
        ("http://localhost:9001", "localhost:9001"),
        ("http://localhost:8765", "localhost:8765"),  # the ports of a container are its own
        ("https://192.168.1.5", "192.168.1.5"),
    ],
)
def test_a_page_of_this_servers_other_port_is_admitted(origin: str, host: str) -> None:
    assert admits_by_ports(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:9002", "localhost:9001"),
        ("http://localhost:9000", "localhost:9002"),
        ("http://localhost", "localhost:9001"),
        ("http://localhost:90000", "localhost:9001"),
        ("http://localhost:900", "localhost:9001"),
        ("http://localhost:9000", "127.0.0.1:9001"),
        ("http://evil.example:9000", "localhost:9001"),
        ("http://localhost:9000.evil.example", "localhost:9001"),
        ("http://localhost:9000", "localhost:9001:9000"),
        ("http://localhost:9000", ""),
        ("http://[::1]:9000", "::1:9001"),
        ("file://localhost:9000", "localhost:9001"),
        ("null", "localhost:9001"),
    ],
)
def test_a_page_of_any_other_port_or_name_is_not(origin: str, host: str) -> None:
    assert not admits_by_ports(origin, host)
    assert not admits_by_ports(origin, host, any_name=True)


def test_a_second_port_does_not_make_a_strangers_name_ours() -> None:
    assert not admits_by_ports("http://evil.example:9000", "evil.example:9001")
    assert admits_by_ports("http://evil.example:9000", "evil.example:9001", any_name=True)


def test_default_ports_are_ports_too() -> None:
    origins = Origins((), frozenset(), any_name=False, own_ports=frozenset({443, 8765}))
    assert origins.admit(["https://localhost"], "localhost:8765")
    assert not origins.admit(["http://localhost"], "localhost:8765")


def test_listed_origins_are_admitted_exactly() -> None:
    allowed = "https://www.example.com", "app://page", "null"
    for origin in ("https://www.example.com", "https://WWW.example.com:443", "app://page", "null"):
        assert admits(origin, "speech.example.com", *allowed)
    for origin in (
        "http://www.example.com",
        "https://www.example.com:8443",
        "https://example.com",
        "https://www.example.com.evil.example",
        "https://evil.example/www.example.com",
        "app://page2",
    ):
        assert not admits(origin, "speech.example.com", *allowed)


def test_a_star_admits_all() -> None:
    assert admits("https://anybody.example", "speech.example.com", "*")
    assert admits("null", "speech.example.com", "*")


# ---------------------------------------------------------------- addresses

PROXIES = tuple(ipaddress.ip_network(network) for network in ("127.0.0.1/32", "10.0.0.0/8", "::1/128"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.5", [], Client("203.0.113.5")),
        ("127.0.0.1", [], Client("127.0.0.1")),
        ("127.0.0.1", ["203.0.113.5"], Client("203.0.113.5", by_proxy=True)),
        ("10.1.2.3", ["203.0.113.5, 10.9.9.9"], Client("203.0.113.5", by_proxy=True)),
        ("127.0.0.1", ["203.0.113.5", "10.9.9.9"], Client("203.0.113.5", by_proxy=True)),
        # What the client wrote itself stands left of what the proxy saw.
        ("127.0.0.1", ["198.51.100.9, 203.0.113.5"], Client("203.0.113.5", by_proxy=True)),
        ("127.0.0.1", ["127.0.0.1, 203.0.113.5"], Client("203.0.113.5", by_proxy=True)),
        # Nobody's word but a proxy's.
        ("203.0.113.5", ["127.0.0.1"], Client("203.0.113.5")),
        ("192.168.0.9", ["203.0.113.5"], Client("192.168.0.9")),
        ("::ffff:127.0.0.1", ["203.0.113.5"], Client("203.0.113.5", by_proxy=True)),
        ("::1", ["2001:DB8::0:5"], Client("2001:db8::5", by_proxy=True)),
        ("127.0.0.1", ["203.0.113.5:4711"], Client("203.0.113.5", by_proxy=True)),
        ("127.0.0.1", ['"[2001:db8::5]:4711"'], Client("2001:db8::5", by_proxy=True)),
        ("127.0.0.1", ["203.0.113.5, unknown"], Client("127.0.0.1")),
        ("127.0.0.1", ["1\x1b[31m"], Client("127.0.0.1")),
        ("127.0.0.1", [""], Client("127.0.0.1")),
    ],
)
def test_the_client_is_the_rightmost_that_is_no_trusted_proxy(peer: str, forwarded: list[str], client: Client) -> None:
    assert client_of(peer, forwarded, PROXIES) == client


def test_of_what_is_claimed_a_proxys_length_is_looked_at() -> None:
    """Regression: tens of thousands of claims kept the loop for seconds."""
    assert client_of("127.0.0.1", ["203.0.113.5" + ", 10.0.0.1" * 15], PROXIES).address == "203.0.113.5"
    assert client_of("127.0.0.1", ["203.0.113.5" + ", 10.0.0.1" * 16], PROXIES).address == "10.0.0.1"
    assert client_of("127.0.0.1", ["203.0.113.5", *["10.0.0.1"] * 16], PROXIES).address == "10.0.0.1"


def test_this_machines_own_programs_are_not_those_of_a_proxy_here() -> None:
    assert client_of("127.0.0.1", [], PROXIES).is_this_machine
    assert not client_of("127.0.0.1", ["203.0.113.5"], PROXIES).is_this_machine
    assert not client_of("10.0.0.1", ["127.0.0.1"], PROXIES).is_this_machine


def test_what_is_no_address_is_no_proxys() -> None:
    assert not is_proxy("unknown", [ipaddress.ip_network("0.0.0.0/0")])


def test_an_owner_has_one_ipv4_address_and_a_network_of_ipv6() -> None:
    assert owner("203.0.113.5") == "203.0.113.5"
    assert owner("2001:db8:1:2:aaaa::1") == owner("2001:db8:1:2::ffff") == "2001:db8:1:2::/64"
    assert owner("2001:db8:1:3::1") != owner("2001:db8:1:2::1")
    assert owner("fe80::1%eth0") == "fe80::/64"
    assert owner("unknown") == "unknown"
