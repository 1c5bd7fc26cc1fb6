"""Whatever bytes come in, each payload ends in one message or one notice, and nothing but rows passes the check."""

import json
import re
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tickcollect.events import STREAMS, Message, RowCheck, row_pattern
from tickcollect.exchanges.binance import (
    MARKETS,
    Acknowledged,
    ControlError,
    Decoder,
    Refused,
    ServerShutdown,
    UnknownEvent,
)
from tickcollect.writer import with_extra_columns

FRAMES = [
    (
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1784000000105,"s":"BTCUSDT","t":6100000001,'
        b'"p":"64120.01000000","q":"0.00150000","T":1784000000104,"m":true,"M":true}}'
    ),
    (
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1620744948060,"s":"BTCUSDT","t":851651093,'
        b'"p":"39307.24000000","q":"0.05838400","b":6046158371,"a":6046157885,"T":1620744948059,"m":false,'
        b'"M":true}}'
    ),
    (
        b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1784000000300,"a":3300000001,"s":"BTCUSDT",'
        b'"p":"64111.10","q":"1.250","nq":"1.200","f":8100000001,"l":8100000006,"T":1784000000155,"m":false,'
        b'"st":1}}'
    ),
    (
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1784000000156,"T":1784000000155,"s":"BTCUSDT",'
        b'"t":8100000001,"p":"0","q":"0","X":"NA","m":false,"st":1}}'
    ),
    (
        b'{"e":"trade","E":1784000000105,"s":"BTCUSDT","t":6100000001,"p":"64120.01000000","q":"0.00150000",'
        b'"T":1784000000104,"m":true,"M":true}'
    ),
    b'{"result":null,"id":1}',
    b'{"error":{"code":2,"msg":"Invalid request"},"id":7}',
    b'{"e":"serverShutdown","E":1784000000123}',
    (
        b'{"stream":"btcusdt@depth","data":{"e":"depthUpdate","E":1784000000200,"s":"BTCUSDT","U":1,"u":2,"b":[],'
        b'"a":[]}}'
    ),
]
NOTICES = (Acknowledged, ControlError, ServerShutdown, UnknownEvent, Refused)
HUGE = [2**53 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**25, -1, -(2**63), 10**5000]

Mutation = Callable[[bytes], bytes]


def flip(place: int, bits: int) -> Mutation:
    def mutate(payload: bytes) -> bytes:
        if not payload:
            return payload
        at = place % len(payload)
        return payload[:at] + bytes([payload[at] ^ bits]) + payload[at + 1 :]

    return mutate


def delete(place: int, length: int) -> Mutation:
    return lambda payload: payload[: place % (len(payload) + 1)] + payload[place % (len(payload) + 1) + length :]


def insert(place: int, piece: bytes) -> Mutation:
    return lambda payload: payload[: place % (len(payload) + 1)] + piece + payload[place % (len(payload) + 1) :]


def replace_number(which: int, number: int) -> Mutation:
    def mutate(payload: bytes) -> bytes:
        numbers = list(re.finditer(rb"(?<=:)\d+", payload))
        if not numbers:
            return payload
        found = numbers[which % len(numbers)]
        # json and str refuse more digits than sys.int_info allows; the digits of a power of ten are known
        digits = b"1" + b"0" * 5000 if number == 10**5000 else str(number).encode()
        return payload[: found.start()] + digits + payload[found.end() :]

    return mutate


def replace_value(which: int, value: bytes) -> Mutation:
    def mutate(payload: bytes) -> bytes:
        values = list(re.finditer(rb'(?<=":)("[^"]*"|[\w.-]+)', payload))
        if not values:
            return payload
        found = values[which % len(values)]
        return payload[: found.start()] + value + payload[found.end() :]

    return mutate


def repeat_key(which: int, value: bytes) -> Mutation:
    def mutate(payload: bytes) -> bytes:
        keys = list(re.finditer(rb'"\w+":', payload))
        if not keys:
            return payload
        found = keys[which % len(keys)]
        return payload[: found.start()] + found[0] + value + b"," + payload[found.start() :]

    return mutate


PLACE = st.integers(0, 400)
PIECES = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b" ",
        b"\x00",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"{",
        b"}",
        b"}\n{",
        b'"',
        b",",
        b"\\",
        b"\\u000a",
        b"\\u002c",
        b"\\ud800",
        b"[" * 3000,
        b"{" * 3000,
        b'{"data":' * 2000,
        b"1" * 400,
        FRAMES[0],
        b"\n" + FRAMES[0],
    ]
)
VALUES = st.sampled_from(
    [
        b"null", b"true", b"1", b"-1", b"1.5", b"1e400", b"NaN", b'""', b"[]", b"{}", b'["trade"]', b'{"e":"trade"}',
        b'"1.5\\n"', b'"1,5"', b'"\\u0031.\\u0035"', b'"\\u0661"', b'"\\"1\\""', b'"=1"', b'"trade"', b'"aggTrade"',
        b'"serverShutdown"', b'"1.5,2.5,,,1784000000104,True\\ntrade,1784000000105,BTCUSDT,7,1.0"', b'"."',
    ]
)  # fmt: skip
MUTATIONS: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(flip, PLACE, st.integers(1, 255)),
    st.builds(delete, PLACE, st.integers(1, 40)),
    st.builds(insert, PLACE, PIECES),
    st.builds(insert, PLACE, st.binary(max_size=6)),
    st.builds(replace_number, PLACE, st.sampled_from(HUGE)),
    st.builds(replace_value, PLACE, VALUES),
    st.builds(repeat_key, PLACE, VALUES),
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    payload = draw(st.sampled_from(FRAMES))
    for mutate in draw(st.lists(MUTATIONS, max_size=3)):
        payload = mutate(payload)
    return payload


ODD = st.one_of(payloads(), payloads(), st.binary(max_size=60), st.sampled_from([b"", b" ", b"\n", b"{}", b"}", b"{"]))
READS = st.one_of(
    st.lists(ODD, min_size=1, max_size=5),
    # one message cut into payloads, next to payloads of two: the counts add up and the messages do not
    st.tuples(st.sampled_from(FRAMES), PLACE).map(
        lambda cut: [cut[0][: cut[1] % len(cut[0])], cut[0][cut[1] % len(cut[0]) :], cut[0] + cut[0]]
    ),
)
EXTRAS: tuple[tuple[str, ...], ...] = ((), ("nq", "M", "X", "st"))


def rows_of(answer: object) -> list[str]:
    """Return what a message becomes in the file, whichever of its stream's classes it is; of a notice nothing."""
    return type(answer).lines([answer]) if isinstance(answer, Message) else []


DECODERS = {(name, extra): Decoder(MARKETS[name], extra) for name in MARKETS for extra in EXTRAS}


def check_rows(message: Message, extra: tuple[str, ...]) -> None:
    """Assert that a message makes one row that matches its pattern, or that the check refuses it."""
    stream = "trade" if "t" in message.__struct_fields__ else "aggTrade"
    lines = type(message).lines([message])
    if extra:
        lines = with_extra_columns(lines, [message], extra, 1784000000200000001)
    text = "".join(lines).encode()
    check = RowCheck(stream, "BTCUSDT", len(extra))
    matches = row_pattern(stream, "BTCUSDT", len(extra)).fullmatch(text) is not None
    assert check.admits(text, 1) is matches
    assert check.admits_row(text) is matches
    if matches:
        assert text.count(b"\n") == 1
        assert text.count(b",") == len(STREAMS[stream].COLUMNS) - 1 + len(extra)


@settings(max_examples=1500, deadline=None)
@given(READS, st.sampled_from(sorted(DECODERS)))
@example([b"", FRAMES[0] + FRAMES[0]], ("binance", ()))
@example([b'{"stream":' + b"[" * 100_000], ("binance", ()))
@example([b'{"stream":[1],"data":{}}'], ("binance", ()))
@example([b'{"e":{}}'], ("binance", ()))
def test_every_payload_ends_in_one_answer(read: list[bytes], which: tuple[str, tuple[str, ...]]) -> None:
    """No payload raises, each gives one message or notice, and a batch gives what its payloads give by themselves."""
    decoder = DECODERS[which]
    answers = [decoder.message(payload) for payload in read]
    for answer in answers:
        assert isinstance(answer, (Message, *NOTICES))
        if isinstance(answer, Message):
            check_rows(answer, which[1])
    together = decoder.messages(read)
    assert together is None or [rows_of(message) for message in together] == [rows_of(answer) for answer in answers]


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["e", "data", "stream", "result", "error", "code", "msg", "id", "s", "t", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_every_json_is_understood(value: object) -> None:
    """Well-formed JSON of any shape in place of the exchange's is told apart without an exception."""
    for name in MARKETS:
        answer = DECODERS[name, ()].message(json.dumps(value).encode())
        assert isinstance(answer, (Message, *NOTICES))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAMES[:4]), min_size=1, max_size=8), st.data())
def test_fields_in_any_order(frames: list[bytes], data: st.DataObject) -> None:
    """The order of the fields is not promised, so any order decodes to the same messages, in a batch too."""
    decoder = DECODERS["binance-futures", ()]
    shuffled = []
    for frame in frames:
        wrapper = json.loads(frame)
        fields = data.draw(st.permutations(list(wrapper["data"].items())))
        shuffled.append(json.dumps({"data": dict(fields), "stream": wrapper["stream"]}).encode())
    expected = [decoder.message(frame) for frame in frames]
    assert [decoder.message(frame) for frame in shuffled] == expected
    assert decoder.messages(shuffled) == expected
