"""What is fuzzed: one function of bytes for each thing that reads what strangers write, and what it may raise.

Anything else that is raised, and any assertion here that fails, is a finding. Inputs are made by ``engine``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from tests.channel.channel_support import SECRET, TODOS, token
from tests.decoder.messages import Reader
from tests.predicate.rows import TABLE, catalog
from walstream.auth.keys import KeySet
from walstream.auth.tokens import Verifier
from walstream.bus.envelope import ALONGSIDE, ORDERED, Envelope, Pieces, decode_content, decode_envelope
from walstream.capture.row_filter import parse_row_filter, print_filter
from walstream.channel.address import client_address, counted_as, parse_networks
from walstream.channel.effects import Accepted, Effect, JoinRequested, Send
from walstream.channel.join import parse_join
from walstream.channel.origins import Origins
from walstream.channel.schemas import Schemas
from walstream.channel.session import Session, SessionLimits
from walstream.channel.since import parse_since
from walstream.channel.topic import parse_topic
from walstream.decoder import DECODERS
from walstream.errors import BusError, ConfigError, DecodeError, FilterError, ProtocolError, TokenError
from walstream.model import CatalogMiss
from walstream.predicate import compile  # noqa: A004
from walstream.predicate.compile import literals_needed
from walstream.protocol.phoenix import VSN_1, VSN_2, codec
from walstream.router.client_filter import parse_filter
from walstream.shell.clients.head import HeadError, parse_head
from walstream.shell.clients.http_broadcast import json_payload, persist_of, read_batch
from walstream.shell.clients.message_counter import MessageCounter
from walstream.telemetry.redaction import Redactor

NOW: Final = 1_700_000_000.0
ROW: Final = (b"1", b'"a"', b"true")
VERIFIER: Final = Verifier(SECRET, api_keys={"opaque": "anon"})


class Target(NamedTuple):
    """``run`` reads one input; ``allowed`` is what it may raise. ``seeds``: good inputs to begin with."""

    run: Callable[[bytes], None]
    allowed: tuple[type[Exception], ...]
    seeds: Sequence[bytes]


TARGETS: Final[dict[str, Target]] = {}


def target(
    *allowed: type[Exception], seeds: Sequence[bytes | str]
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Register a function under its name."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        given = [seed.encode() if isinstance(seed, str) else seed for seed in seeds]
        TARGETS[run.__name__] = Target(run, allowed, given)
        return run

    return register


def text_of(data: bytes) -> str:
    """Any text; what is no UTF-8 becomes lone surrogates, which JSON may hold as well."""
    return data.decode("utf-8", "surrogateescape")


JOIN: Final = {
    "config": {
        "broadcast": {"ack": True, "self": True, "replay": {"since": 1, "limit": 5}},
        "presence": {"key": "k", "enabled": True},
        "postgres_changes": [{**TODOS, "filter": "id=eq.1", "select": ["id"]}],
        "postgres_changes_options": {"wait": True},
        "private": False,
    },
    "access_token": token(),
}
FRAMES: Final = [
    json.dumps(["1", "1", "realtime:a", "phx_join", JOIN]),
    json.dumps({"topic": "realtime:a", "event": "phx_join", "payload": JOIN, "ref": "1", "join_ref": "1"}),
    '[null,"2","phoenix","heartbeat",{}]',
    '["1","3","realtime:a","broadcast",{"type":"broadcast","event":"e","payload":{"n":1},"meta":{"id":"x"}}]',
    '["1","4","realtime:a","presence",{"type":"presence","event":"track","payload":{"n":1}}]',
    '["1","5","realtime:a","access_token",{"access_token":"x"}]',
    '["1","6","realtime:a","phx_leave",{}]',
    '["1","7","realtime:a","moderation",{"action":"delete","message_id":"x"}]',
]
BINARY: Final = [
    b"\x03\x01\x01\x0a\x01\x00\x01" + b"11realtime:ae" + b'{"n":1}',
    b"\x03\x01\x01\x0a\x01\x0b\x00" + b"11realtime:ae" + b'{"store":1}' + b"\x00\xff",
]


def _decode_frame(vsn: str, data: str | bytes) -> None:
    frames = codec(vsn)
    message = frames.decode(data)
    reply = frames.encode_reply(message, "ok")
    read_json(reply)
    frames.encode_push(message.topic, message.event, b"{}", join_ref=message.join_ref, ref=message.ref)
    message.value()


@target(ProtocolError, seeds=FRAMES)
def phoenix_v1(data: bytes) -> None:
    """Text frames of vsn 1.0.0."""
    _decode_frame(VSN_1, text_of(data))


@target(ProtocolError, seeds=FRAMES)
def phoenix_v2(data: bytes) -> None:
    """Text frames of vsn 2.0.0."""
    _decode_frame(VSN_2, text_of(data))


@target(ProtocolError, seeds=BINARY)
def phoenix_binary(data: bytes) -> None:
    """Binary frames."""
    _decode_frame(VSN_2, data)


@target(seeds=["\n".join([FRAMES[0], *FRAMES[2:]]), "\n".join(FRAMES[1:2])])
def session(data: bytes) -> None:
    """A connection: lines are messages, joins are accepted. What it sends has to be JSON."""
    for vsn in (VSN_1, VSN_2):
        made = Session(vsn, VERIFIER.verify("opaque", NOW), VERIFIER, SessionLimits(), NOW, token="opaque")
        now = NOW
        for line in data.split(b"\n")[:20]:
            now += 0.5
            _perform(made, made.receive(line if line[:1] in b"\0\1\2\3\4" else text_of(line), now), now)
        _perform(made, made.tick(now + 60), now + 60)
        made.leave_all()


def _perform(made: Session, effects: list[Effect], now: float) -> None:
    for effect in effects:
        if isinstance(effect, Send) and not effect.binary:
            read_json(effect.data)
        if isinstance(effect, JoinRequested):
            ids = tuple(range(1, len(effect.request.items) + 1))
            _perform(made, made.join_ready(effect.request.serial, Accepted(ids), now), now)


@target(seeds=[json.dumps(JOIN), '{"config":null,"user_token":"x"}', "{}"])
def join_payload(data: bytes) -> None:
    """The payload of a join, which is text, for each kind of topic."""
    for name in ("realtime:room", "realtime:public:todos:id=eq.1", "realtime:table:public.todos", "realtime:*"):
        topic = parse_topic(name)
        assert topic is not None
        config = parse_join(topic, data.decode(errors="replace").encode())
        for number, item in enumerate(config.echoed, 1):
            read_json(item.echo(number))


FILTERS: Final = [
    "n=eq.1", "t=like.a%25", "t=in.(a,\"b,c\")", "b=is.true", "n=not.is.null", "and(n.gt.1,or(t.eq.x,b.is.false))",
    "t=match.^a[bc]+$", "n=isdistinct.3", "t=ilike.*x*",
]  # fmt: skip
ROW_FILTERS: Final = [
    "n = 1 and t like 'a%'", "not (n between 1 and 2) or t in ('a', 'b')", "b is true", "t ~* '^a(b|c)+$'",
    "n is distinct from 3 and t <> ''", "n::text = '1'", "t = E'\\\\x' or n >= -1.5e3",
]  # fmt: skip


@target(FilterError, CatalogMiss, seeds=FILTERS)
def client_filter(data: bytes) -> None:
    """Supabase's filter language: read, compiled, and asked about a row."""
    expression = parse_filter(text_of(data))
    if expression is not None:
        literals_needed(expression, TABLE, catalog())
        compile(expression, TABLE, catalog(), {})(ROW)


@target(FilterError, CatalogMiss, seeds=ROW_FILTERS)
def row_filter(data: bytes) -> None:
    """The SQL-like filter language; what is printed has to mean the same."""
    expression = parse_row_filter(text_of(data))
    assert parse_row_filter(print_filter(expression)) == expression
    compile(expression, TABLE, catalog(), {})(ROW)


@functools.cache
def _trained(plugin: str) -> tuple[Reader, list[bytes]]:
    from tests.contracts.test_decoder_hostile import ODD, T, valid

    reader, messages = Reader(plugin, T, ODD), valid(plugin)
    for _ in range(3):
        reader.read(messages)
    return reader, messages


def _decode_wal(plugin: str, data: bytes) -> None:
    """Messages one after another; an input of 0xff between two of them."""
    from tests.contracts.test_decoder_hostile import survives

    reader, _ = _trained(plugin)
    for part in data.split(b"\xff\xfe\xff")[:10]:
        survives(reader.decoder, part)


@target(DecodeError, CatalogMiss, seeds=_trained(DECODERS[0])[1])
def decoder_first(data: bytes) -> None:
    """What the first output plugin sends."""
    _decode_wal(DECODERS[0], data)


@target(DecodeError, CatalogMiss, seeds=_trained(DECODERS[1])[1])
def decoder_second(data: bytes) -> None:
    """What the second output plugin sends."""
    _decode_wal(DECODERS[1], data)


HEADS: Final = [
    "GET /socket/websocket?apikey=a&vsn=1.0.0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: a, Upgrade",
    "POST http://x/api/broadcast?private=true HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX-Forwarded-For: 1.2.3.4",
]


@target(HeadError, seeds=HEADS)
def http_head(data: bytes) -> None:
    """One request head."""
    head = parse_head(data + b"\r\n\r\n", "192.0.2.1:5")
    assert len(head.query) <= 100
    _ = head.is_upgrade, head.header("host"), head.parameter("apikey")
    persist_of(dict(head.query))


BODIES: Final = [
    '{"messages":[{"topic":"a","event":"b","payload":{"n":1},"private":false,"id":"x"}]}', "[1]",
    '{"n":[1,2.5e3,null,"\\u00e9"]}',
]  # fmt: skip


@target(seeds=BODIES)
def rest_body(data: bytes) -> None:
    """Bodies of REST broadcasts; what is passed on has to be JSON."""
    found = read_batch(data, 1000)
    if not isinstance(found, str):
        for broadcast in found[0]:
            assert isinstance(read_json(broadcast.payload), dict)
    payload = json_payload(data)
    if payload is not None:
        assert isinstance(read_json(payload), dict)


def read_json(text: bytes) -> object:
    """As strict clients do, but for numbers of any size. What is nested too deeply for Python is let be."""
    try:
        return json.loads(text.decode(), parse_int=str, parse_float=str, parse_constant=_no_number)
    except RecursionError:
        return {}


def _no_number(name: str) -> object:
    raise AssertionError(f"{name} is no JSON")


@target(TokenError, seeds=[token(), "opaque", "a.b.c", token().replace(".", "%2E", 1)])
def bearer_token(data: bytes) -> None:
    """A token that nobody signed."""
    VERIFIER.verify(text_of(data), NOW)


@target(TokenError, seeds=['{"role":"anon","exp":1800000000,"sub":"ada","iat":1e9}', '{"role":"x","exp":1.8e9}'])
def token_claims(data: bytes) -> None:
    """A token that the application signed over whatever claims."""
    import jwt

    claims = VERIFIER.verify(jwt.PyJWS().encode(data, SECRET, algorithm="HS256"), NOW)
    assert claims.role
    assert claims.exp is not None
    assert isinstance(read_json(claims.json.encode()), dict)


KEY_SET: Final = (
    '{"keys":[{"kty":"oct","kid":"a","k":"AAAA"},{"kty":"OKP","crv":"Ed25519","kid":"b","x":"AA"},'
    '{"kty":"EC","crv":"P-256","kid":"c","x":"AA","y":"AA","alg":"ES256","use":"sig"}]}'
)


@target(ConfigError, seeds=[KEY_SET])
def key_set(data: bytes) -> None:
    """A key set's text."""
    KeySet.parse(text_of(data))


SCHEMAS: Final = [
    '{"e":{"type":"object","required":["n"],"properties":{"n":{"type":"integer","minimum":1}}}}\n{"n":1}',
    '{"*":{"pattern":"^(a|b)*$","maxLength":5,"uniqueItems":true,"items":{"$ref":"#/$defs/x"},"$defs":{"x":{}}}}\n["a","b"]',
    '{"e":{"anyOf":[{"enum":[1,2]},{"not":{"const":3}}],"patternProperties":{"^x":{"type":"null"}}}}\n{"x1":null}',
]


@target(seeds=SCHEMAS)
def json_schema(data: bytes) -> None:
    """A channel's schemas in the first line, a message in the rest."""
    first, _, payload = data.partition(b"\n")
    try:
        value = msgspec.json.decode(first)
    except (msgspec.DecodeError, ValueError, RecursionError):
        value = {"e": {}}
    schemas = Schemas(value)
    for event in ("e", "other"):
        schemas.check(event, payload)
        schemas.check(event, payload, binary=True)


@target(ValueError, seeds=["0", "1700000000", "1700000000123", "2026-01-30T10:00:00Z", "1700000000123456.7"])
def since(data: bytes) -> None:
    """A point in a room's history."""
    position = parse_since(text_of(data))
    assert parse_since(str(position)) == position


ENVELOPES: Final = [
    msgspec.msgpack.encode(Envelope("n", ORDERED, 1, 5, [])),
    msgspec.msgpack.encode(Envelope("n", ALONGSIDE, 1, 5, [], parts=2, part=1, data=b"x")),
]


@target(BusError, seeds=ENVELOPES)
def bus_envelope(data: bytes) -> None:
    """What another node sealed."""
    Pieces().add(decode_envelope(data))


@target(BusError, seeds=[b"\x90"])
def bus_content(data: bytes) -> None:
    """What another node stored."""
    decode_content(data)


@target(seeds=["10.0.0.1\n1.2.3.4, 10.0.0.2:80\n[2001:db8::1]:1\nhttps://a.example.org", "::1\nunknown"])
def addresses(data: bytes) -> None:
    """X-Forwarded-For and Origin."""
    trusted = parse_networks("10.0.0.0/8,::1")
    peer, *hops = text_of(data).split("\n")
    counted_as(client_address(peer, hops, trusted))
    origins = Origins("https://*.example.org,http://b.test")
    for hop in hops:
        for _, value in origins.allow_header(hop, peer):
            assert "\r" not in value
            assert "\n" not in value


@target(seeds=["?apikey=a.b&x", "postgres://u:p@h/d password='a b'", "Bearer eyJhbGciOi.eyJ.x"])
def redaction(data: bytes) -> None:
    """Whatever is logged: no known secret survives."""
    shown = Redactor(["hunter22"]).text(text_of(data))
    assert "hunter22" not in shown


WS_FRAMES: Final = [
    bytes([0x81, 0x85, 0, 0, 0, 0]) + b"hello", bytes([1, 0xFE, 0, 200]) + b"x" * 204 + bytes([0x80, 0x80, 1, 2, 3, 4]),
    bytes([0x89, 0x80, 1, 2, 3, 4]) * 3,
]  # fmt: skip


@target(seeds=WS_FRAMES)
def websocket_frames(data: bytes) -> None:
    """Frame headers: the same count in whatever pieces they come."""
    whole, pieces = MessageCounter(), MessageCounter()
    count = whole.feed(data)
    total = frames = 0
    for at in range(0, len(data), 3):
        total += pieces.feed(data[at : at + 3])
        frames += pieces.frames
    assert (total, frames, pieces.fragments) == (count, whole.frames, whole.fragments)
