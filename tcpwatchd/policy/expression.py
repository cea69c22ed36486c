"""Which connections a rule is about: an expression in the words of pcap-filter(7), compiled. No I/O.

    expression = operand, { ("and" | "&&"), operand }, { ("or" | "||"), operand } ;
    operand    = ("not" | "!"), operand | "(", expression, ")" | primitive ;

An "and" after an "or" needs parentheses: pcap-filter takes both from left to right, nearly everybody else
takes "and" first. Each word is true, false, or None where what it asks for is not known; "not" of that is not
known either. A rule that is not known to be true does not match.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple, Optional

from tcpwatchd.connection import MAPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tcpwatchd.connection import Owner

    Addresses = tuple[bytes, bytes]
    """Packed, the first and the last of them."""
    Known = Optional[bool]
    Test = Callable[["Facts"], Known]
    FindPort = Callable[[str], int]
    """The port of a service's name. Raises OSError."""

TOKEN = re.compile(r'\s*(?:(\(|\)|&&|\|\||!)|"([^"]*)"|([^\s()"!&|](?:(?!&&|\|\|)[^\s()"])*))')
SYMBOLS = {"&&": "and", "||": "or", "!": "not"}
LONGEST_NAME = 15
"""Of a process, as the kernel keeps it (TASK_COMM_LEN)."""
DEEPEST = 50
"""Parentheses and nots inside each other."""
MOST_PORT = 65535
PORT_RANGE = re.compile("([0-9]{1,5})(?:-([0-9]{1,5}))?")
"""One port, or the first and the last."""
LONGEST_PATTERN = 256
"""Longer than any name; to compile much longer ones takes minutes."""
SOURCE, DESTINATION = "src", "dst"


class Facts(NamedTuple):
    """What a rule can ask of a connection. What is not known, or not yet, is None."""

    source: bytes
    """Its address, packed, as that of the destination."""
    source_port: int | None
    destination: bytes
    destination_port: int
    direction: str | None
    """None: opened here, and not known yet whether it leaves this machine."""
    here: bool | None
    """Whether an end of it is in the network namespace that is polled."""
    owners: tuple[Owner, Owner] | None = None
    """As in `Connection`: who has the end that is here, and who accepted it where both are."""


class Expression(NamedTuple):
    """What was compiled, and what it asks for."""

    test: Test
    asks_owner: bool
    addresses: tuple[Addresses, ...]
    ports: tuple[tuple[int, int], ...]
    """Those it asks for, each as the first and the last of them."""
    named_ports: tuple[tuple[str, int], ...]
    """Names of services that it has, and the port that each meant."""


class ExpressionError(ValueError):
    """`offset` is where in the expression; the text says what was expected there."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset


class Token(NamedTuple):
    offset: int
    text: str
    quoted: bool = False

    @property
    def word(self) -> str:
        """What it means in the grammar; a quoted one is a name and nothing else."""
        return "" if self.quoted else SYMBOLS.get(self.text, self.text)


def compile_expression(text: str, find_port: FindPort) -> Expression:
    """Raises ExpressionError."""
    parser = Parser(text, find_port)
    test = parser.parse_expression(0)
    parser.expect_end()
    asked = tuple(parser.addresses), tuple(parser.ports), tuple(parser.named_ports.items())
    return Expression(test, parser.asks_owner, *asked)


def split_tokens(text: str) -> Iterator[Token]:
    """Raises ExpressionError."""
    at, end = 0, len(text.rstrip())
    while at < end:
        found = TOKEN.match(text, at)
        if not found:
            at += len(text[at:]) - len(text[at:].lstrip())
            what = (
                'a second " after this one' if text[at] == '"' else f"a word or parenthesis, not {text[at]!r}"
            )
            raise ExpressionError(at, f"expected {what}")
        symbol, quoted, plain = found.groups()
        at = found.end()
        if quoted is not None:
            yield Token(found.start(2) - 1, quoted, quoted=True)
        else:
            yield Token(found.start(1 if symbol else 3), symbol or plain)
        if not symbol and text[at : at + 1] == '"':
            raise ExpressionError(at, 'expected a space before "')
        if plain and plain.endswith("\\"):  # at the end of a line it would be no part of it
            raise ExpressionError(at - 1, "expected a name that ends with \\ in quotes")


class Parser:
    """By recursive descent, one expression."""

    def __init__(self, text: str, find_port: FindPort) -> None:
        self._find_port = find_port
        self._tokens = [*split_tokens(text), Token(len(text.rstrip()), "", quoted=True)]
        self._at = 0
        self.asks_owner = False
        self.addresses: list[Addresses] = []
        self.ports: list[tuple[int, int]] = []
        self.named_ports: dict[str, int] = {}

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    @property
    def _ended(self) -> bool:
        return self._at == len(self._tokens) - 1

    def _take(self) -> Token:
        token = self._next
        self._at += not self._ended
        return token

    def _fail(self, token: Token, expected: str) -> ExpressionError:
        found = "the end" if token is self._tokens[-1] else quote(token.text)
        return ExpressionError(token.offset, f"expected {expected}, found {found}")

    def expect_end(self) -> None:
        """Raises ExpressionError."""
        if not self._ended:
            raise self._fail(self._next, '"and" or "or"')

    def parse_expression(self, depth: int) -> Test:
        """Raises ExpressionError."""
        both, either = [self._parse_operand(depth)], []
        while self._next.word in ("and", "or"):
            operator = self._take()
            if operator.word == "or":
                either.append(self._parse_operand(depth))
            elif either:
                raise ExpressionError(
                    operator.offset, f'expected parentheses: "{operator.text}" after an "or"'
                )
            else:
                both.append(self._parse_operand(depth))
        first = both[0] if len(both) == 1 else all_of(both)
        return any_of([first, *either]) if either else first

    def _parse_operand(self, depth: int) -> Test:
        token = self._take()
        if depth == DEEPEST and token.word in ("not", "("):
            raise ExpressionError(token.offset, f"expected no more than {DEEPEST} of these inside each other")
        if token.word == "not":
            return negate(self._parse_operand(depth + 1))
        if token.word == "(":
            inner = self.parse_expression(depth + 1)
            closing = self._take()
            if closing.word != ")":
                raise self._fail(closing, '")", "and" or "or"')
            return inner
        return self._parse_primitive(token)

    def _parse_primitive(self, token: Token) -> Test:
        word = token.word
        if word in PLAIN:
            return PLAIN[word]
        if word in OWNED:
            self.asks_owner = True
            token = self._take_name(word, "a name or pattern")
            if len(token.text) > LONGEST_PATTERN:
                raise self._fail(token, f"a pattern of at most {LONGEST_PATTERN} characters")
            expected = find_expected(word, token.text)
            if expected:
                raise self._fail(token, expected)
            return on_owner(OWNED[word], token)
        side = None
        if word in (SOURCE, DESTINATION):
            side, token = word, self._take()
            if token.word not in PLACED:
                either = f': either side is meant without "{word}"' if token.word in ("or", "and") else ""
                raise self._fail(token, f'"host", "net" or "port" after "{word}"{either}')
        if token.word == "host":
            self.addresses.append(parse_host(self._take_name("host", "an address")))
            return on_address(side, self.addresses[-1])
        if token.word == "net":
            self.addresses.append(parse_net(self._take_name("net", "a network")))
            return on_address(side, self.addresses[-1])
        if token.word == "port":
            self.ports.append(self._parse_ports(self._take_name("port", "a port")))
            return on_port(side, *self.ports[-1])
        raise self._fail(token, find_hint(token) or "a word such as " + ", ".join(WORDS))

    def _parse_ports(self, token: Token) -> tuple[int, int]:
        """The first and the last."""
        text, offset = token.text, token.offset
        numbers = PORT_RANGE.fullmatch(text)
        if numbers:
            low, high = int(numbers[1]), int(numbers[2] or numbers[1])
            if not 1 <= low <= high <= MOST_PORT:
                order = ", the lower first" if numbers[2] else ""
                raise ExpressionError(offset, f"expected ports from 1 to {MOST_PORT}{order}, found {text!r}")
            return low, high
        try:
            port = self._find_port(text)
        except (OSError, ValueError):  # no such service, or no name
            what = "a port, a range such as 8000-8999, or the name of a service"
            raise self._fail(token, what) from None
        self.named_ports[text] = port
        return port, port

    def _take_name(self, word: str, what: str) -> Token:
        token = self._take()
        if token is self._tokens[-1] or token.word in ("(", ")", *SYMBOLS.values()):
            raise self._fail(token, f'{what} after "{word}"')
        return token


def find_hint(token: Token) -> str | None:
    """What somebody who knows tcpdump may have meant."""
    text = token.text
    if token.quoted:
        return None
    if text != text.lower() and text.lower() in (*WORDS, "and", "or"):
        return f'"{text.lower()}" in lower case'
    if re.fullmatch("[0-9][0-9a-fA-F.:/-]*", text):
        return (
            f'a word before it, such as "port {text}"'
            if text.isdecimal()
            else 'a word before it, such as "host"'
        )
    return HINTS.get(text.lower())


HINTS = {
    "tcp": "no such word, since all connections are TCP",
    "udp": "no such word, since all connections are TCP",
    "portrange": '"port" before a range of ports',
    "in": '"inbound" or "ingress"',
    "out": '"outbound" or "egress"',
}


def find_expected(word: str, pattern: str) -> str | None:
    """What a pattern should be that can match nothing, as no name is so."""
    wild = any(sign in pattern for sign in "*?[")
    if not pattern:
        return f'a name or pattern after "{word}"'
    if word == "unit" and not wild and "." not in pattern:
        return f'a unit with its suffix, such as "{pattern}.service"'
    if word == "process" and not wild and len(pattern) > LONGEST_NAME and "\\" not in pattern:
        return f"a name of at most {LONGEST_NAME} characters, which is what the kernel keeps of it"
    if word != "process" and re.search("[\\s',;]", pattern):
        return f'one name or pattern after "{word}"'
    return None


def quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def parse_host(token: Token) -> Addresses:
    """Raises ExpressionError."""
    try:
        address = ipaddress.ip_address(token.text).packed
    except ValueError:
        address = b""
    if not address or "%" in token.text:
        is_name = re.fullmatch("[^0-9:][^:/%]*", token.text)
        what = "an address, since names are not looked up" if is_name else "an address"
        raise ExpressionError(token.offset, f"expected {what}, found {quote(token.text)}")
    plain = address.removeprefix(MAPPED) if len(address) == 16 else address
    return plain, plain


def parse_net(token: Token) -> Addresses:
    """Raises ExpressionError."""
    text, offset = token.text, token.offset
    try:
        net = ipaddress.ip_network(text, strict=False) if re.fullmatch("[^/%]+/[0-9]+", text) else None
    except ValueError:
        net = None
    if net is None:
        raise ExpressionError(offset, f"expected a network such as 10.0.0.0/8, found {quote(text)}")
    if ipaddress.ip_address(text.partition("/")[0]) != net.network_address:
        raise ExpressionError(offset, f"expected no bits after the first {net.prefixlen}, as in {net}")
    first, last = net.network_address.packed, net.broadcast_address.packed
    if first.startswith(MAPPED) and last.startswith(MAPPED):
        return first[len(MAPPED) :], last[len(MAPPED) :]
    return first, last


def all_of(tests: list[Test]) -> Test:
    def test(facts: Facts) -> Known:
        known: Known = True
        for one in tests:
            found = one(facts)
            if found is False:
                return False
            if found is None:
                known = None
        return known

    return test


def any_of(tests: list[Test]) -> Test:
    def test(facts: Facts) -> Known:
        known: Known = False
        for one in tests:
            found = one(facts)
            if found:
                return True
            if found is None:
                known = None
        return known

    return test


def negate(one: Test) -> Test:
    def test(facts: Facts) -> Known:
        found = one(facts)
        return None if found is None else not found

    return test


def on_address(side: str | None, addresses: Addresses) -> Test:
    first, last = addresses
    size = len(first)

    def matches(place: bytes) -> bool:
        return len(place) == size and first <= place <= last

    if side == SOURCE:
        return lambda facts: matches(facts.source)
    if side == DESTINATION:
        return lambda facts: matches(facts.destination)
    return lambda facts: matches(facts.source) or matches(facts.destination)


def on_port(side: str | None, low: int, high: int) -> Test:
    def test_source(facts: Facts) -> Known:
        port = facts.source_port
        return None if port is None else low <= port <= high

    if side == SOURCE:
        return test_source
    if side == DESTINATION:
        return lambda facts: low <= facts.destination_port <= high
    return lambda facts: low <= facts.destination_port <= high or test_source(facts)


def on_owner(find_names: Callable[[Owner], list[str] | None], token: Token) -> Test:
    """Of either end that is here."""
    try:
        matches = re.compile(fnmatch.translate(token.text)).match
    except re.error as error:  # as of [z-a] before Python 3.10
        raise ExpressionError(token.offset, f"expected a pattern, found {quote(token.text)}") from error

    def test_one(owner: Owner) -> Known:
        names = find_names(owner)
        return None if names is None else any(map(matches, names))

    def test(facts: Facts) -> Known:
        if facts.owners is None:
            return None
        owner, listener = facts.owners
        found = test_one(owner)
        if found or facts.direction != "internal":
            return found
        other = test_one(listener)
        return other if other or found is False else None

    return test


def on_direction(*directions: str) -> Test:
    """What was opened here is no ingress, whatever else it is."""
    unknown = False if directions == ("ingress",) else None
    return lambda facts: unknown if facts.direction is None else facts.direction in directions


def list_users(owner: Owner) -> list[str] | None:
    """Its number, and its name."""
    if owner.user is None:
        return None
    return [str(owner.user)] if owner.user_name is None else [str(owner.user), owner.user_name]


def list_units(owner: Owner) -> list[str] | None:
    """That of the machine, and that of the user's own systemd."""
    if owner.unit is None:
        return None
    return [owner.unit] if owner.user_unit is None else [owner.unit, owner.user_unit]


def list_containers(owner: Owner) -> list[str] | None:
    """What has a unit has its control group known: then it is known to be in none."""
    if owner.container is None:
        return None if owner.unit is None else []
    return [owner.container]


def list_names(owner: Owner) -> list[str] | None:
    return None if owner.name is None else [owner.name]


PLAIN: dict[str, Test] = {
    "ingress": on_direction("ingress"),
    "inbound": on_direction("ingress"),
    "egress": on_direction("egress"),
    "outbound": on_direction("egress"),
    "internal": on_direction("internal"),
    "ip": lambda facts: len(facts.source) == 4,
    "ip6": lambda facts: len(facts.source) == 16,
    "here": lambda facts: facts.here,
}
OWNED = {"user": list_users, "unit": list_units, "container": list_containers, "process": list_names}
PLACED = ("host", "net", "port")
WORDS = [*PLAIN, SOURCE, DESTINATION, *PLACED, *OWNED, "not"]
