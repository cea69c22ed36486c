"""What is known, as the text of a file that outlives the process. No I/O.

A line with the version and a checksum, a line of JSON, then the slices of both tables: one a line, an empty
line between two blocks, as the tables' readings keep them; then the connections that are followed until they
close.
"""

from __future__ import annotations

from binascii import crc32
from typing import Any, NamedTuple

from tcpwatchd.connection import (
    IPV4_LENGTH,
    IPV6_LENGTH,
    NOBODY,
    PLAIN,
    Caller,
    Closed,
    Closing,
    Connection,
    End,
    Endpoint,
    Folded,
    Known,
    Listener,
    Loss,
    OpenKnown,
    Owner,
    OwnersKnown,
    Row,
    Socket,
    TcpState,
    Transition,
)
from tcpwatchd.output.event import Event
from tcpwatchd.policy.folding import GroupKnown, Limit
from tcpwatchd.policy.policy import PolicyKnown
from tcpwatchd.policy.rules import compile_rule
from tcpwatchd.policy.scans import NOTHING_SCANNED, Ports, Scan, ScansKnown
from tcpwatchd.tracking.closings import check as check_open

MAGIC = b"tcpwatchd-baseline 1 "
ENDPOINT_LENGTHS = IPV4_LENGTH, IPV6_LENGTH
OWNER_NUMBERS = {"user", "process", "thread", "network"}


NOT_KEPT: tuple[Any, ...] = (None, [], [], None, None, None, None)
"""What an older version left out at the end stands for this."""
NOTHING_OPEN = OpenKnown("opened", 0, [], [b"", b""], [])


class BaselineError(ValueError):
    """What was kept cannot be used; the text says why."""


class Baseline(NamedTuple):
    """All that the next process needs to go on where this one was."""

    saved: int
    """Nanoseconds of CLOCK_BOOTTIME."""
    generation: int
    """Names the log of what came since."""
    instance: int | None
    """The inode of the instance of tracefs that was last read."""
    drained: int
    """When that was, in microseconds since the epoch."""
    taken: dict[int, int]
    """How many records had been taken out of each of its CPUs."""
    deferred: list[Transition]
    """Taken out, and left for the next drain."""
    known: Known
    waiting: list[Connection | Closed | Folded | Event]
    """What was to be written."""
    counters: list[int]
    """Of the coverage audit."""
    blocks: list[list[set[bytes]]]
    """The slices of both tables."""
    unsound_since: int | None = None
    """Since when the instance was not what it should be, in microseconds since the epoch."""
    owners: OwnersKnown = OwnersKnown({}, {})
    open: OpenKnown = NOTHING_OPEN
    offset: int | None = None
    """What the time of day was ahead of CLOCK_BOOTTIME, in nanoseconds."""
    policy: PolicyKnown | None = None
    """None: an older version had none."""
    scans: ScansKnown = NOTHING_SCANNED


def format_baseline(baseline: Baseline) -> bytes:
    from json import dumps

    texts = [b"\n\n".join([b"\n".join(block) for block in blocks]) for blocks in baseline.blocks]
    texts += baseline.open.records
    sizes = [len(text) for text in texts]
    body = b"".join((dumps([*_simplify(baseline), sizes]).encode(), b"\n", *texts))
    return b"%b%08x\n%b" % (MAGIC, crc32(body), body)


def parse_baseline(text: bytes) -> Baseline:
    """Raises BaselineError for a text that is damaged, or of another version or program."""
    from json import loads

    header, _, body = text.partition(b"\n")
    if not header.startswith(MAGIC):
        raise BaselineError(f"not a baseline of this version: {header[:40]!r}")
    if header[len(MAGIC) :] != b"%08x" % crc32(body):
        raise BaselineError("damaged: its checksum is another")
    try:
        line, _, rows = body.partition(b"\n")
        *head, sizes = loads(line)
        return _restore(head, _split_texts(rows, sizes))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise BaselineError(f"makes no sense: {error!r}") from error


def _split_texts(text: bytes, sizes: list[int]) -> list[bytes]:
    """The slices of both tables, and the connections that are followed; an older version had none."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    texts = [text[end - size : end] for size, end in zip(sizes, ends)]
    return [*texts, b"", b""][:4]


def _parse_blocks(text: bytes) -> list[set[bytes]]:
    return [set(block.split(b"\n")) for block in text.split(b"\n\n")] if text else []


def _simplify(baseline: Baseline) -> list[Any]:
    """All but the tables, of nothing but what JSON knows.

    What there may be very many of is a string of words each: that is quicker than lists.
    """
    known = baseline.known
    return [
        *baseline[:4],
        list(baseline.taken.items()),
        [_simplify_transition(transition) for transition in baseline.deferred],
        [
            known.first,
            known.open,
            [[end.hex(), rows] for end, rows in known.listeners.items()],
            [f"{_join(end)} {when} {told}" for end, (when, told) in known.awaiting_row.items()],
            [_simplify_away(end, row) for end, row in known.absent.items()],
            [f"{_join(end)} {n} {until}" for end, (n, until) in known.unpaired.items()],
            [
                [socket, remote.hex(), *_simplify_caller(caller)]
                for socket, (remote, caller) in known.handshakes.items()
            ],
            [[_simplify_item(connection), held] for connection, held in known.reports],
            [_simplify_away(row.end, row) for row in known.older_prints],
            [f"{_join(end)} {when}" for end, when in known.polled_ahead.items()],
            known.absent_since,
        ],
        [_simplify_item(item) for item in baseline.waiting],
        baseline.counters,
        baseline.unsound_since,
        [[number, path.hex()] for number, path in baseline.owners.groups.items()],
        [
            [skaddr, one.endpoint.hex(), one.socket, *one[2:]]
            for skaddr, one in baseline.owners.listeners.items()
        ],
        _simplify_open(baseline.open),
        baseline.offset,
        None if baseline.policy is None else _simplify_policy(baseline.policy),
        _simplify_scans(baseline.scans),
    ]


def _simplify_transition(transition: Transition) -> list[Any]:
    *head, end, thread, name, socket, closing = transition
    return [*head, end.local.hex(), end.remote.hex(), thread, name and name.hex(), socket, closing]


def _simplify_open(known: OpenKnown) -> list[Any]:
    return [
        known.report,
        known.unsure_before,
        [[number, _simplify_connection(shared)] for number, shared in known.shared],
        [[key.hex(), *rest] for key, *rest in known.halves],
    ]


def _simplify_policy(known: PolicyKnown) -> list[Any]:
    rules, limit, groups, *tally = known
    return [
        [[*rule[:4], rule.expression.named_ports] for rule in rules],
        limit,
        [[*group[:2], _simplify_item(group.item), *group[3:]] for group in groups],
        *tally,
    ]


def _simplify_scans(known: ScansKnown) -> list[Any]:
    places = [
        f"{key.hex()} {place.hex()} {time} {how} {address.hex()}"
        for key, place, time, how, address in known.places
    ]
    scans = [[key.hex(), *_simplify_scan(scan)] for key, scan in known.scans]
    called, unfollowed = (" ".join(one.hex() for one in some) for some in (known.called, known.unfollowed))
    return [places, scans, called, unfollowed, *known[4:]]


def _simplify_scan(scan: Scan) -> list[Any]:
    ports = [list(ports.blocks.items()) for ports in (scan.ports, scan.new_ports, scan.all_ports)]
    sets = scan.addresses, scan.new_addresses, scan.all_addresses
    addresses = [" ".join(one.hex() for one in some) for some in sets]
    accepted = [f"{place.hex()} {time} {place in scan.inside:d}" for place, time in scan.accepted.items()]
    numbers = [scan.window, scan.due, scan.told_at, scan.first, scan.last, scan.has_others, scan.is_least]
    return [scan.address.hex(), ports, addresses, accepted, list(map(int, numbers))]


def _simplify_caller(caller: Caller) -> list[Any]:
    return [caller.time, caller.thread, None if caller.name is None else caller.name.hex()]


def _join(end: End) -> str:
    return f"{end.local.hex()} {end.remote.hex()}"


def _simplify_away(end: End, row: Row | None) -> str:
    return _join(end) + (f" {row.state:d} {row.inode} {row.user}" if row else "")


def _simplify_item(item: Connection | Closed | Folded | Transition | Loss | Event) -> Any:
    """A list that begins with a number is an event, with a list a record, with null what has closed, with
    true what is folded. A number is when records were lost.
    """
    if isinstance(item, Loss):
        return item.time
    if isinstance(item, Event):
        return [item.time, dict(item.fields)]
    if isinstance(item, Transition):
        return [_simplify_transition(item)]
    if isinstance(item, Closed):
        return [None, _simplify_connection(item.connection), *item[1:]]
    if isinstance(item, Folded):
        return [True, _simplify_item(item.first), *item[1:]]
    return _simplify_connection(item)


def _simplify_connection(item: Connection) -> str | list[Any]:
    """Words, or a list that begins with them."""
    source, destination, direction, state, detected_by, time, guessed, priority, *owners = item
    words = f"{source.hex()} {destination.hex()} {direction} {state:d} {detected_by} {time} {guessed:d}"
    if priority != PLAIN:
        words += f" {priority}"
    sockets = item[-2:]
    if not any(owners[:3]) and item.owner == item.listener == NOBODY and not any(sockets):
        return words
    caller = None if item.caller is None else _simplify_caller(item.caller)
    return [words, item.opener, item.acceptor, caller, item.owner, item.listener, *sockets]


def _restore(head: list[Any], texts: list[bytes]) -> Baseline:
    """From what `_simplify` made, here or in an older version. Raises ValueError, TypeError and the like for
    anything else.
    """
    saved, generation, instance, drained, taken, deferred, known, waiting, counters, *later = head
    unsound_since, groups, listeners, opened, offset, policy, scans = [*later, *NOT_KEPT[len(later) :]]
    return Baseline(
        int(saved),
        int(generation),
        None if instance is None else int(instance),
        int(drained),
        {int(cpu): int(records) for cpu, records in taken},
        [_restore_transition(*fields) for fields in deferred],
        _restore_known(*known),
        [_restore_item(item) for item in waiting],
        [int(count) for count in counters],
        [_parse_blocks(text) for text in texts[:2]],
        None if unsound_since is None else int(unsound_since),
        _restore_owners(groups, listeners),
        NOTHING_OPEN if opened is None else _restore_open(texts[2:], *opened),
        None if offset is None else int(offset),
        None if policy is None else _restore_policy(*policy),
        NOTHING_SCANNED if scans is None else _restore_scans(*scans),
    )


def _restore_policy(
    rules: Any, limit: Any, groups: Any, since: Any, ignored: Any, folded: Any
) -> PolicyKnown:
    """With ports that are what they were, whatever services are called by now."""
    known = tuple(
        compile_rule(str(action), str(text), str(path), int(line), _restore_ports(ports).__getitem__)
        for action, text, path, line, ports in rules
    )
    return PolicyKnown(
        known,
        None if limit is None else Limit(*map(int, limit)),
        [_restore_group(*group) for group in groups],
        int(since),
        [(range(len(known))[number], int(times)) for number, times in ignored],
        [int(folded[0]), int(folded[1])],
    )


def _restore_scans(
    places: Any, scans: Any, called: Any, unfollowed: Any, lost_until: Any, prefix6: Any, read: Any
) -> ScansKnown:
    return ScansKnown(
        [
            (
                _restore_address(key),
                _restore_endpoint(place),
                _restore_time(time),
                int(how),
                _restore_address(last),
            )
            for key, place, time, how, last in map(_split, places)
        ],
        [(_restore_address(key), _restore_scan(*scan)) for key, *scan in scans],
        [_restore_endpoint(place) for place in str(called).split()],
        [_restore_address(key) for key in str(unfollowed).split()],
        _restore_time(lost_until),
        int(prefix6),
        (int(read[0]), int(read[1])),
    )


def _restore_scan(address: Any, ports: Any, addresses: Any, accepted: Any, numbers: Any) -> Scan:
    window, due, told_at, first, last, has_others, is_least = map(_restore_time, numbers)
    scan = Scan(_restore_address(address), window, due)
    scan.told_at, scan.first, scan.last = told_at, first, last
    scan.has_others, scan.is_least = bool(has_others), bool(is_least)
    scan.ports, scan.new_ports, scan.all_ports = (Ports(_restore_blocks(blocks)) for blocks in ports)
    scan.addresses, scan.new_addresses, scan.all_addresses = (
        set(map(_restore_address, str(some).split())) for some in addresses
    )
    for place, time, inside in map(_split, accepted):
        scan.accepted[_restore_endpoint(place)] = _restore_time(time)
        if inside == "1":
            scan.inside.add(_restore_endpoint(place))
    return scan


def _restore_time(number: Any) -> int:
    """Of which a date can be made."""
    if not 0 <= int(number) < 1 << 62:
        raise ValueError(number)
    return int(number)


def _restore_blocks(blocks: Any) -> list[tuple[int, int]]:
    known = [(int(block), int(bits)) for block, bits in blocks]
    if not all(0 <= block < 256 and 0 <= bits < 1 << 256 for block, bits in known):
        raise ValueError(blocks)
    return known


def _restore_address(text: str) -> bytes:
    address = bytes.fromhex(text)
    if len(address) not in (4, 16):
        raise ValueError(text)
    return address


def _restore_ports(named: Any) -> dict[str, int]:
    ports = {str(name): int(port) for name, port in named}
    if not all(0 < port < 1 << 16 for port in ports.values()):
        raise ValueError(named)
    return ports


def _restore_group(began: Any, written: Any, item: Any, folded: Any, last: Any) -> GroupKnown:
    return GroupKnown(int(began), int(written), _restore_one(item), int(folded), int(last))


def _restore_one(item: Any) -> Connection | Closed:
    found = _restore_item(item)
    if not isinstance(found, (Connection, Closed)):
        raise ValueError(item)
    return found


def _restore_open(texts: list[bytes], report: Any, unsure_before: Any, shared: Any, halves: Any) -> OpenKnown:
    if report not in ("opened", "closed", "both"):
        raise ValueError(report)
    kinds = [(int(number), _restore_connection(item)) for number, item in shared]
    views = [
        (bytes.fromhex(key), int(time), one_of(role, (0, 1)), tuple(view)) for key, time, role, view in halves
    ]
    known = OpenKnown(report, int(unsure_before), kinds, texts, views)
    check_open(known)
    return known


def _restore_known(
    first: Any,
    count: Any,
    listeners: Any,
    awaiting_row: Any,
    absent: Any,
    unpaired: Any,
    handshakes: Any,
    reports: Any,
    older_prints: Any = (),
    polled_ahead: Any = (),
    absent_since: Any = (0, 0),
) -> Known:
    """What an older version did not keep has the value that it meant."""
    return Known(
        bool(first),
        int(count),
        {_restore_endpoint(end): int(rows) for end, rows in listeners},
        {_restore_end(*words[:2]): _restore_awaiting(*words[2:]) for words in map(_split, awaiting_row)},
        {_restore_end(*words[:2]): _restore_row(*words) for words in map(_split, absent)},
        {_restore_end(*words): (int(n), int(until)) for *words, n, until in map(_split, unpaired)},
        {int(socket): (_restore_endpoint(to), _restore_caller(*who)) for socket, to, *who in handshakes},
        [(_restore_report(item), bool(held)) for item, held in reports],
        frozenset(row for words in map(_split, older_prints) if (row := _restore_row(*words))),
        {_restore_end(*words): int(when) for *words, when in map(_split, polled_ahead)},
        (int(absent_since[0]), int(absent_since[1])),
    )


def _split(words: Any) -> list[str]:
    return str(words).split(" ")


def _restore_endpoint(text: str) -> Endpoint:
    endpoint = Endpoint(bytes.fromhex(text))
    if len(endpoint) not in ENDPOINT_LENGTHS:
        raise ValueError(text)
    return endpoint


def _restore_end(local: str, remote: str) -> End:
    return End(_restore_endpoint(local), _restore_endpoint(remote))


def _restore_awaiting(when: str, told: str = "1") -> tuple[int, int]:
    return int(when), int(told)


def _restore_row(local: str, remote: str, state: str = "", inode: str = "", user: str = "0") -> Row | None:
    return Row(_restore_end(local, remote), TcpState(int(state)), int(inode), int(user)) if state else None


def _restore_transition(
    time: Any,
    skaddr: Any,
    old: Any,
    new: Any,
    local: Any,
    remote: Any,
    thread: Any,
    name: Any = None,
    socket: Any = None,
    closing: Any = None,
) -> Transition:
    end = End(*(Endpoint(bytes.fromhex(text)) for text in (local, remote)))  # empty for a socket that closes
    states = TcpState(old), TcpState(new)
    names = None if name is None else bytes.fromhex(name)
    kept = _restore_socket(socket), None if closing is None else Closing(*map(int, closing))
    return Transition(int(time), int(skaddr), *states, end, int(thread), names, *kept)


def _restore_socket(socket: Any) -> Socket | None:
    return None if socket is None else Socket(*map(int, socket))


def _restore_caller(time: Any = 0, thread: Any = 0, name: Any = None) -> Caller:
    return Caller(int(time), int(thread), None if name is None else bytes.fromhex(name))


def _restore_owner(*fields: Any) -> Owner:
    kinds: list[Any] = [int if name in OWNER_NUMBERS else str for name in Owner._fields]
    owner = Owner._make(None if field is None else kind(field) for kind, field in zip(kinds, fields))
    return NOBODY if owner == NOBODY else owner


def _restore_owners(groups: Any = (), listeners: Any = ()) -> OwnersKnown:
    return OwnersKnown(
        {int(number): bytes.fromhex(path) for number, path in groups},
        {
            int(skaddr): Listener(_restore_endpoint(endpoint), Socket(*map(int, socket)), *map(int, rest))
            for skaddr, endpoint, socket, *rest in listeners
        },
    )


def _restore_item(item: Any) -> Connection | Closed | Folded | Event:
    if isinstance(item, str) or isinstance(item[0], str):
        return _restore_connection(item)
    if item[0] is True:
        _, first, number, last = item
        return Folded(_restore_one(first), int(number), int(last))
    if item[0] is None:
        _, connection, time, by, first, *counts, detected_by = item
        source_bytes, destination_bytes = (None if count is None else int(count) for count in counts)
        return Closed(
            _restore_connection(connection),
            int(time),
            one_of(by, (None, "fin", "reset", "timeout")),
            one_of(first, (None, "source", "destination", "both")),
            source_bytes,
            destination_bytes,
            one_of(detected_by, ("trace", "poll")),
        )
    time, named = item
    return Event(int(time), {str(name): str(value) for name, value in named.items()})


def one_of(word: Any, words: tuple[Any, ...]) -> Any:
    if word not in words:
        raise ValueError(word)
    return word


def _restore_report(item: Any) -> Connection | Transition | Loss:
    if isinstance(item, int):
        return Loss(item)
    if isinstance(item[0], list):
        return _restore_transition(*item[0])
    return _restore_connection(item)


def _restore_connection(item: Any) -> Connection:
    """Words, or a list of them and of what is known of its owners and sockets."""
    if isinstance(item, str):
        return _restore_ends(item)
    words, opener, acceptor, caller, owner, listener, *sockets = item
    source_socket, destination_socket = sockets or (0, 0)
    return _restore_ends(words)._replace(
        opener=_restore_socket(opener),
        acceptor=_restore_socket(acceptor),
        caller=None if caller is None else _restore_caller(*caller),
        owner=_restore_owner(*owner),
        listener=_restore_owner(*listener),
        source_socket=int(source_socket),
        destination_socket=int(destination_socket),
    )


def _restore_ends(words: str) -> Connection:
    direction: Any
    detected_by: Any
    source, destination, direction, state, detected_by, time, *more = _split(words)
    if direction not in ("ingress", "egress", "internal") or detected_by not in ("trace", "poll", "startup"):
        raise ValueError(direction, detected_by)
    ends = _restore_endpoint(source), _restore_endpoint(destination)
    # An older version did not say whether it had guessed.
    is_guess = more[0] == "1" if more else detected_by != "trace"
    priority = one_of(more[1] if len(more) > 1 else PLAIN, ("4", "5", PLAIN))
    return Connection(*ends, direction, TcpState(int(state)), detected_by, int(time), is_guess, priority)
