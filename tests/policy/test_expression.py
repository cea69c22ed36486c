"""The words of rules: what means, what is refused and where, and any expression against a simple reading."""

from __future__ import annotations

import ipaddress
import warnings
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import NOBODY, Owner
from tcpwatchd.policy.expression import (
    DEEPEST,
    LONGEST_PATTERN,
    Expression,
    ExpressionError,
    Facts,
    compile_expression,
    find_expected,
    quote,
)

SERVICES = {"http": 80, "https": 443, "web-cache": 8080}
CLIENT, SERVER = "192.0.2.56", "10.0.0.5"
CLIENT6, SERVER6 = "2001:db8::56", "2001:db8:1::5"


def find_port(name: str) -> int:
    try:
        return SERVICES[name]
    except KeyError:
        raise OSError(name) from None


def compile_text(text: str) -> Expression:
    return compile_expression(text, find_port)


def pack(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def make_facts(source: str = CLIENT, destination: str = SERVER, **more: Any) -> Facts:
    facts = Facts(pack(source), 5973, pack(destination), 80, "ingress", here=True)
    return facts._replace(**more)


def ask(text: str, facts: Facts) -> bool | None:
    return compile_text(text).test(facts)


# What each word means.


@pytest.mark.parametrize(
    ("word", "true_for"),
    [
        ("ingress", "ingress"),
        ("inbound", "ingress"),
        ("egress", "egress"),
        ("outbound", "egress"),
        ("internal", "internal"),
    ],
)
def test_directions(word: str, true_for: str) -> None:
    for direction in ("ingress", "egress", "internal"):
        assert ask(word, make_facts(direction=direction)) is (direction == true_for)
    opened_here = ask(word, make_facts(direction=None))
    assert opened_here is (False if true_for == "ingress" else None)


def test_families() -> None:
    assert (ask("ip", make_facts()), ask("ip6", make_facts())) == (True, False)
    facts = make_facts(CLIENT6, SERVER6)
    assert (ask("ip", facts), ask("ip6", facts)) == (False, True)


def test_here() -> None:
    assert [ask("here", make_facts(here=here)) for here in (True, False, None)] == [True, False, None]


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("host 192.0.2.56", "src"),
        ("host 10.0.0.5", "dst"),
        ("host 10.0.0.6", ""),
        ("host ::ffff:192.0.2.56", "src"),
        ("host ::FFFF:a00:5", "dst"),
        ("host ::192.0.2.56", ""),
        ('host "10.0.0.5"', "dst"),
        ("net 192.0.2.0/24", "src"),
        ("net 192.0.2.56/32", "src"),
        ("net 192.0.2.48/29", ""),
        ("net 10.0.0.0/8", "dst"),
        ("net 0.0.0.0/0", "src dst"),
        ("net 128.0.0.0/1", "src"),
        ("net ::ffff:192.0.2.0/120", "src"),
        ("net ::ffff:0:0/96", "src dst"),
        ("net ::/0", ""),
        ("net c000::/8", ""),
        ("port 5973", "src"),
        ("port 80", "dst"),
        ("port 00080", "dst"),
        ("port http", "dst"),
        ('port "http"', "dst"),
        ("port https", ""),
        ("port 81", ""),
        ("port 1-79", ""),
        ("port 80-80", "dst"),
        ("port 79-81", "dst"),
        ("port 1-65535", "src dst"),
    ],
)
def test_places(text: str, sides: str) -> None:
    facts = make_facts()
    assert ask(f"src {text}", facts) is ("src" in sides)
    assert ask(f"dst {text}", facts) is ("dst" in sides)
    assert ask(text, facts) is bool(sides)


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("host 2001:DB8:0::56", "src"),
        ("host 2001:db8:1::5", "dst"),
        ("net 2001:db8::/32", "src dst"),
        ("net 2001:db8:1::/48", "dst"),
        ("net 2001:db8::56/128", "src"),
        ("net ::/0", "src dst"),
        ("net 0.0.0.0/0", ""),
        ("net 32.1.13.184/32", ""),
    ],
)
def test_places_of_ipv6(text: str, sides: str) -> None:
    facts = make_facts(CLIENT6, SERVER6)
    assert [ask(f"src {text}", facts), ask(f"dst {text}", facts)] == ["src" in sides, "dst" in sides]
    assert ask(text, facts) is bool(sides)


def test_a_source_port_that_is_not_known() -> None:
    facts = make_facts(source_port=None)
    assert ask("src port 5973", facts) is None
    assert ask("port 5973", facts) is None
    assert ask("port 80", facts) is True
    assert ask("dst port 5973", facts) is False


OWNER = Owner(
    user=1000,
    user_name="alice",
    unit="user@1000.service",
    user_unit="app-x.scope",
    container="c1",
    name="curl",
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("user alice", True),
        ("user 1000", True),
        ("user 100", False),
        ("user Alice", False),
        ("user a*", True),
        ("unit user@1000.service", True),
        ("unit app-x.scope", True),
        ("unit user@*.service", True),
        ("unit *.[st]*", True),
        ("container c1", True),
        ("container c?", True),
        ("container ?", False),
        ("process curl", True),
        ("process [!a-b]url", True),
        ("process [!a-c]url", False),
        ("process *", True),
        ('process "*r*"', True),
    ],
)
def test_owners(text: str, found: bool) -> None:
    assert ask(text, make_facts(owners=(OWNER, NOBODY))) is found
    assert ask(text, make_facts(owners=(NOBODY, OWNER))) is None
    assert ask(text, make_facts(owners=(NOBODY, NOBODY))) is None
    assert ask(text, make_facts()) is None
    assert compile_text(text).asks_owner


def test_what_is_in_a_unit_and_no_container_is_in_none() -> None:
    facts = make_facts(owners=(Owner(unit="cron.service"), NOBODY))
    assert ask("container *", facts) is False
    assert ask("not container *", facts) is True


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(one, two, True if True in (one, two) else None if None in (one, two) else False)
     for one, two in product((True, False, None), repeat=2)],
)  # fmt: skip
def test_of_two_ends_that_are_here_either_counts(
    first: bool | None, second: bool | None, expected: bool | None
) -> None:
    names = {True: "curl", False: "wget", None: None}
    owners = Owner(name=names[first]), Owner(name=names[second])
    assert ask("process curl", make_facts(direction="internal", owners=owners)) is expected
    assert ask("process curl", make_facts(direction="egress", owners=owners)) is first


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("[", ["["], ["", "x"]),
        ("[!", ["[!"], ["!"]),
        ("a[b", ["a[b"], ["ab"]),
        ("[]", ["[]"], ["[", "]"]),
        ("[]]", ["]"], ["["]),
        ("[[]", ["["], ["]"]),
        ("[!]]", ["["], ["]"]),
        ("[--]", ["-"], ["a"]),
        ("[a&&b]", ["&", "a"], ["c"]),
        ("[a||b]", ["|", "b"], ["c"]),
        ("[a~~b]", ["~"], ["c"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("[\\d]", ["\\", "d"], ["5"]),
        ("a.c", ["a.c"], ["abc"]),
        ("a+", ["a+"], ["aa"]),
        ("x\\x2dy", ["x\\x2dy"], ["x-y"]),
        ("$^", ["$^"], [""]),
        ("*\n", ["a\n"], ["a"]),
        ("é?", ["éa"], ["é"]),
        ("*" * LONGEST_PATTERN, ["", "x"], []),
        ("*a" * (LONGEST_PATTERN // 2), ["a" * 128], ["a" * 127, "a" * 5000 + "b"]),
        ("?" * LONGEST_PATTERN, ["x" * LONGEST_PATTERN], ["x" * 255, "x" * 257]),
        ("[" * LONGEST_PATTERN, ["[" * LONGEST_PATTERN], ["["]),
        ("[!" * (LONGEST_PATTERN // 2), ["[!" * 128], [""]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_patterns(pattern: str, names: list[str], others: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = compile_text(f'process "{pattern}"')
    for name in names + others:
        assert compiled.test(make_facts(owners=(Owner(name=name), NOBODY))) is (name in names), name


@pytest.mark.parametrize("pattern", ["[z-a]", "[a--b]"])
def test_a_range_that_is_turned_is_refused_or_matches_nothing(pattern: str) -> None:
    """The first before Python 3.10, the second since."""
    try:
        compiled = compile_text(f'process "{pattern}"')
    except ExpressionError as error:
        assert str(error) == f"expected a pattern, found {pattern!r}"  # noqa: PT017
        return
    for name in ("z", "a", "-", "a-"):
        assert compiled.test(make_facts(owners=(Owner(name=name), NOBODY))) is False


# How words are joined.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ip and port 80", True),
        ("ip && port 80", True),
        ("ip6 or port 80", True),
        ("ip6 || port 80", True),
        ("not ip6", True),
        ("!ip6", True),
        ("! ip6", True),
        ("not not ip", True),
        ("!!ip", True),
        ("not ip6 and ip6", False),
        ("not (ip6 and ip6)", True),
        ("not ip or ip", True),
        ("not (ip or ip)", False),
        ("ip6 and ip6 or ip", True),
        ("ip6 and (ip6 or ip)", False),
        ("ip and ip6 or ip6 or ip", True),
        ("(ip or ip6) and ip6", False),
        ("ip or (ip6 and ip6)", True),
        ("((ip))", True),
        ("(ip)and(ip)", True),
        ("ip and(ip6)or ip", True),
        ("(ip)&&(ip)||(ip6)", True),
        ("  ip\tand\u3000ip  ", True),
        ('process "and"', None),
        ('process "(" or ip', True),
        ("(" * DEEPEST + "ip" + ")" * DEEPEST, True),
        ("not " * DEEPEST + "ip", True),
        ("not (" * (DEEPEST // 2) + "ip" + ")" * (DEEPEST // 2), False),
        (" and ".join(["ip"] * 10_000), True),
        (" or ".join(["(ip6)"] * 10_000), False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_joined(text: str, expected: bool | None) -> None:
    assert ask(text, make_facts()) is expected


@pytest.mark.parametrize(("one", "two"), [*product((True, False, None), repeat=2)])
def test_what_is_not_known(one: bool | None, two: bool | None) -> None:
    """As Kleene has it."""
    words = {True: "ip", False: "ip6", None: "here"}
    facts = make_facts(here=None)
    rank = {False: 0, None: 1, True: 2}
    assert ask(f"{words[one]} and {words[two]}", facts) is min(one, two, key=rank.__getitem__)
    assert ask(f"{words[one]} or {words[two]}", facts) is max(one, two, key=rank.__getitem__)
    assert ask(f"not {words[one]}", facts) is (None if one is None else not one)
    assert ask(f"not not {words[one]}", facts) is one


# What an expression asks for.


@pytest.mark.parametrize(
    ("text", "asks_owner", "addresses", "ports", "named_ports"),
    [
        ("ip and here", False, (), (), ()),
        ("ip and not (ip6 or user x)", True, (), (), ()),
        ("port 80 or src port 1-5 or dst port 9", False, (), ((80, 80), (1, 5), (9, 9)), ()),
        (
            "dst port http or src port https",
            False,
            (),
            ((80, 80), (443, 443)),
            (("http", 80), ("https", 443)),
        ),
        ('port "web-cache"', False, (), ((8080, 8080),), (("web-cache", 8080),)),
        ('process "port 80"', True, (), (), ()),
        ("host 10.0.0.1", False, ((b"\x0a\0\0\1",) * 2,), (), ()),
        ("src net 10.0.0.0/31", False, ((b"\x0a\0\0\0", b"\x0a\0\0\1"),), (), ()),
        ("net ::ffff:10.0.0.0/127", False, ((b"\x0a\0\0\0", b"\x0a\0\0\1"),), (), ()),
        ("dst net ::/0", False, ((bytes(16), b"\xff" * 16),), (), ()),
    ],
)
def test_what_it_asks_for(text: str, asks_owner: bool, addresses: Any, ports: Any, named_ports: Any) -> None:
    assert compile_text(text)[1:] == (asks_owner, addresses, ports, named_ports)


# What is refused, and where.

A_WORD = (
    "a word such as ingress, inbound, egress, outbound, internal, ip, ip6, here, src, dst, host, net, port, "
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A mark stands before the place.
        ("¦", f"{A_WORD}user, unit, container, process, not, found the end"),
        ("¦   ", A_WORD),
        ("¦tpc", f"{A_WORD}user, unit, container, process, not, found 'tpc'"),
        ("¦tcp and port 80", "no such word, since all connections are TCP, found 'tcp'"),
        ("¦portrange 1-5", '"port" before a range of ports'),
        ("¦IP", "\"ip\" in lower case, found 'IP'"),
        ("port 80 or ¦443", "a word before it, such as \"port 443\", found '443'"),
        ("host ::1 or ¦10.0.0.1", 'a word before it, such as "host"'),
        ("src ¦or dst port 80", '"host", "net" or "port" after "src": either side is meant without "src"'),
        ("unit ¦nginx", "a unit with its suffix, such as \"nginx.service\", found 'nginx'"),
        ("user ¦'root'", 'one name or pattern after "user"'),
        ("unit ¦a.service,b.service", 'one name or pattern after "unit"'),
        ('process ¦""', 'a name or pattern after "process"'),
        ("process ¦sixteencharacter", "a name of at most 15 characters"),
        ("net ¦10.0.0.0/0.255.255.255", "a network such as 10.0.0.0/8, found "),
        ('¦"ip"', A_WORD),
        ("¦)", f"{A_WORD}user, unit, container, process, not, found ')'"),
        ("ip and¦ ", A_WORD),
        ("ip or ¦or ip", A_WORD),
        ("¦and ip", A_WORD),
        ("not¦ ", A_WORD),
        ("(¦)", A_WORD),
        ("ip &&¦&& ip", A_WORD),
        ("ip&&¦IP6", "\"ip6\" in lower case, found 'IP6'"),
        ("(ip¦", '")", "and" or "or", found the end'),
        ("(ip ¦ip6)", "\")\", \"and\" or \"or\", found 'ip6'"),
        ("ip ¦ip6", "\"and\" or \"or\", found 'ip6'"),
        ("ip¦)", "\"and\" or \"or\", found ')'"),
        ("ip ¦not ip6", "\"and\" or \"or\", found 'not'"),
        ('ip ¦"and" ip', "\"and\" or \"or\", found 'and'"),
        ("ip or ip6 ¦and here", 'parentheses: "and" after an "or"'),
        ("ip and ip or ip6 ¦&& here", 'parentheses: "&&" after an "or"'),
        ("(ip || ip6 ¦and here)", 'parentheses: "and" after an "or"'),
        ("src¦ ", '"host", "net" or "port" after "src", found the end'),
        ("dst ¦10.0.0.1", "\"host\", \"net\" or \"port\" after \"dst\", found '10.0.0.1'"),
        ("src ¦dst port 80", '"host", "net" or "port" after "src", found '),
        ("dst ¦user root", '"host", "net" or "port" after "dst", found '),
        ("host¦ ", 'an address after "host", found the end'),
        ("host ¦and ip", "an address after \"host\", found 'and'"),
        ("src host ¦(10.0.0.1)", "an address after \"host\", found '('"),
        ("host ¦10.0.0", "an address, found '10.0.0'"),
        ("host ¦10.0.0.1/32", "an address, found '10.0.0.1/32'"),
        ("host ¦010.0.0.1", "an address, "),
        ("host ¦fe80::1%eth0", "an address, found 'fe80::1%eth0'"),
        ("host ¦example.org", "an address, since names are not looked up, found 'example.org'"),
        ('host ¦""', "an address, found ''"),
        ("net¦ ", 'a network after "net", found the end'),
        ("net ¦10.0.0.0", "a network such as 10.0.0.0/8, found '10.0.0.0'"),
        ("net ¦10.0.0.0/33", "a network such as 10.0.0.0/8, found "),
        ("net ¦10.0.0.0/-1", "a network such as 10.0.0.0/8, found "),
        ("net ¦10/8", "a network such as 10.0.0.0/8, found '10/8'"),
        ("net ¦/8", "a network such as 10.0.0.0/8, found '/8'"),
        ("net ¦fe80::%1/64", "a network such as 10.0.0.0/8, found "),
        ("net ¦10.0.0.1/8", "no bits after the first 8, as in 10.0.0.0/8"),
        ("net ¦2001:db8::1/64", "no bits after the first 64, as in 2001:db8::/64"),
        ("port¦ ", 'a port after "port", found the end'),
        ("port ¦!80", "a port after \"port\", found '!'"),
        ("port ¦0", "ports from 1 to 65535, found '0'"),
        ("port ¦65536", "ports from 1 to 65535, found '65536'"),
        ("port ¦0-5", "ports from 1 to 65535, the lower first, found '0-5'"),
        ("port ¦9-8", "ports from 1 to 65535, the lower first, found '9-8'"),
        ("src port ¦80-", "a port, a range such as 8000-8999, or the name of a service, found '80-'"),
        ("port ¦100000", "a port, a range such as 8000-8999, or the name of a service, found '100000'"),
        ("port ¦htp", "a port, a range such as 8000-8999, or the name of a service, found 'htp'"),
        ("port 80 ¦443", "\"and\" or \"or\", found '443'"),
        ("user¦ ", 'a name or pattern after "user", found the end'),
        ("unit ¦or ip", "a name or pattern after \"unit\", found 'or'"),
        ("container ¦)", "a name or pattern after \"container\", found ')'"),
        ("process ¦! x", "a name or pattern after \"process\", found '!'"),
        (f"process ¦{'x' * (LONGEST_PATTERN + 1)}", "a pattern of at most 256 characters, found "),
        ('process ¦"x', 'a second " after this one'),
        ('process "x"¦"y"', 'a space before "'),
        ('process x¦"y"', 'a space before "'),
        ("process my¦\\ prog", "a name that ends with \\ in quotes"),
        ("process x¦\\", "a name that ends with \\ in quotes"),
        ("ip ¦& ip", "a word or parenthesis, not '&'"),
        ("ip ¦| ip", "a word or parenthesis, not '|'"),
        ("¦\x9b31m", f"{A_WORD}user, unit, container, process, not, found '\\x9b31m'"),
        ("(" * DEEPEST + "¦(ip", "no more than 50 of these inside each other"),
        ("!" * DEEPEST + "¦not ip", "no more than 50 of these inside each other"),
        ("not (" * (DEEPEST // 2) + "¦(ip", "no more than 50 of these inside each other"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_refused(text: str, expected: str) -> None:
    offset = text.index("¦")
    with pytest.raises(ExpressionError) as raised:
        compile_text(text.replace("¦", ""))
    assert str(raised.value).startswith(f"expected {expected}")
    assert raised.value.offset == offset
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


def test_a_long_text_is_quoted_in_part() -> None:
    assert (quote("x" * 60), quote("x" * 61)) == (repr("x" * 60), repr("x" * 57 + "..."))


# Any expression, against a simple reading of its tree.

NETS = [("192.0.2.0", 24), ("10.0.0.0", 8), ("0.0.0.0", 0), ("2001:db8::", 32), ("10.0.0.5", 32), ("::", 0)]
ADDRESSES = [CLIENT, SERVER, CLIENT6, SERVER6, "10.255.0.1", "::1"]
NAMES = ["a", "ab", "abc", "b", "and", "1", "x y"]
PATTERNS = ["a", "*", "a*", "?b*", "*c", "and", "*b*b*", "x y", "1", "**", "??"]
DIRECTIONS: dict[str, str] = {
    "inbound": "ingress",
    "outbound": "egress",
    "ingress": "ingress",
    "egress": "egress",
    "internal": "internal",
}
PORTS = [1, 80, 443, 5973, 65535]

leaves = st.one_of(
    st.tuples(st.sampled_from(["ingress", "inbound", "egress", "outbound", "internal", "ip", "ip6", "here"])),
    st.tuples(st.just("host"), st.sampled_from([None, "src", "dst"]), st.sampled_from(ADDRESSES)),
    st.tuples(st.just("net"), st.sampled_from([None, "src", "dst"]), st.sampled_from(NETS)),
    st.tuples(
        st.just("port"),
        st.sampled_from([None, "src", "dst"]),
        st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(sorted),
    ),
    st.tuples(st.sampled_from(["user", "unit", "container", "process"]), st.sampled_from(PATTERNS)).filter(
        lambda leaf: find_expected(*leaf) is None
    ),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=4)),
    ),
    max_leaves=12,
)
names = st.sampled_from([None, *NAMES])
owners = st.builds(
    Owner, user=st.sampled_from([None, 0, 1]), user_name=names, unit=names, user_unit=names, container=names,
    name=names,
)  # fmt: skip
any_facts = st.builds(
    Facts,
    source=st.sampled_from(ADDRESSES).map(pack),
    source_port=st.sampled_from([None, *PORTS]),
    destination=st.sampled_from(ADDRESSES).map(pack),
    destination_port=st.sampled_from(PORTS),
    direction=st.sampled_from([None, "ingress", "egress", "internal"]),
    here=st.sampled_from([None, True, False]),
    owners=st.one_of(st.none(), st.tuples(owners, owners)),
)


def render(tree: Any, draw: Any, within: str = "") -> str:
    """With spaces, parentheses and symbols that are not needed, and those parentheses that are."""
    space = draw(st.sampled_from([" ", "  ", "\t", " \n "]))
    word, *rest = tree
    if word == "not":
        text = draw(st.sampled_from(["not ", "!", "! "])) + render(rest[0], draw, "not")
    elif word in ("and", "or"):
        symbol = draw(st.sampled_from([word, {"and": "&&", "or": "||"}[word]]))
        parts = [render(part, draw, word + " after" * (at > 0)) for at, part in enumerate(rest[0])]
        text = f"{space}{symbol} ".join(parts)
    elif word == "net":
        text = f"{rest[0] or ''} net{space}{rest[1][0]}/{rest[1][1]}".lstrip()
    elif word == "port":
        low, high = rest[1]
        ports = f"{low}" if low == high and draw(st.booleans()) else f"{low}-{high}"
        text = f"{rest[0] or ''} port{space}{ports}".lstrip()
    elif word == "host":
        text = f"{rest[0] or ''} host{space}{rest[1]}".lstrip()
    elif rest:
        needs_quotes = rest[0] in ("and", "x y") or draw(st.booleans())
        text = f'{word}{space}"{rest[0]}"' if needs_quotes else f"{word}{space}{rest[0]}"
    else:
        text = word
    # "and" binds before "or" where it stands first; elsewhere it needs parentheses.
    needed = (word == "or" and within) or (word == "and" and within not in ("", "or"))
    return f"({text}{space})" if needed or draw(st.integers(0, 5)) == 0 else text


def fits(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(fits(pattern[1:], name[at:]) for at in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and fits(pattern[1:], name[1:])


def join(found: list[bool | None], decisive: bool) -> bool | None:
    return decisive if decisive in found else None if None in found else not decisive


def read_place(kind: str, wanted: Any, address: bytes, port: int | None) -> bool | None:
    if kind == "port":
        return None if port is None else wanted[0] <= port <= wanted[1]
    if kind == "host":
        return ipaddress.ip_address(address) == ipaddress.ip_address(wanted)
    return ipaddress.ip_address(address) in ipaddress.ip_network(f"{wanted[0]}/{wanted[1]}")


def read_owner(kind: str, pattern: str, owner: Owner) -> bool | None:
    if kind == "user":
        known, all_names = owner.user is not None, [str(owner.user), owner.user_name]
    elif kind == "unit":
        known, all_names = owner.unit is not None, [owner.unit, owner.user_unit]
    elif kind == "container":
        known, all_names = owner.unit is not None or owner.container is not None, [owner.container]
    else:
        known, all_names = owner.name is not None, [owner.name]
    return any(fits(pattern, name) for name in all_names if name is not None) if known else None


def evaluate(tree: Any, facts: Facts) -> bool | None:  # noqa: PLR0911, one for each kind of word
    word, *rest = tree
    if word == "not":
        found = evaluate(rest[0], facts)
        return None if found is None else not found
    if word in ("and", "or"):
        return join([evaluate(part, facts) for part in rest[0]], word == "or")
    if word in ("host", "net", "port"):
        side, wanted = rest
        source = read_place(word, wanted, facts.source, facts.source_port)
        destination = read_place(word, wanted, facts.destination, facts.destination_port)
        return join([source] * (side != "dst") + [destination] * (side != "src"), True)
    if word in ("user", "unit", "container", "process"):
        ends = (facts.owners or (NOBODY, NOBODY))[: 2 if facts.direction == "internal" else 1]
        return join([read_owner(word, rest[0], one) for one in ends], True)
    if word == "here":
        return facts.here
    if word in ("ip", "ip6"):
        return len(facts.source) == (4 if word == "ip" else 16)
    if facts.direction is None:
        return False if DIRECTIONS[word] == "ingress" else None
    return facts.direction == DIRECTIONS[word]


@given(trees, st.lists(any_facts, min_size=1, max_size=8), st.data())
def test_any_expression_means_what_a_simple_reading_does(tree: Any, several: list[Facts], data: Any) -> None:
    text = render(tree, data.draw)
    compiled = compile_text(text)
    for facts in several:
        assert compiled.test(facts) is evaluate(tree, facts), text


@given(st.text(alphabet=st.sampled_from(list('()!&|" \\*[-/:.19aé\x9b')), max_size=30), st.data())
def test_any_text_is_compiled_or_refused_at_a_place_in_it(text: str, data: Any) -> None:
    words = data.draw(
        st.lists(st.sampled_from(["ip", "not", "and", "or", "host", "net", "src", "port", "user"]))
    )
    text = f"{' '.join(words)}{text}"
    refused = None
    try:
        found = compile_text(text).test(make_facts())
    except ExpressionError as error:
        refused = error
    if refused:
        assert 0 <= refused.offset <= len(text)
        assert str(refused).startswith("expected ")
        assert str(refused).isprintable()
    else:
        assert found in (True, False, None)
