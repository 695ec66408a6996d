"""Keys of JSON cells order and equal as PostgreSQL's values do; literals are read as its input functions read them."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import FilterError
from walstream.model import Catalog, TypeInfo
from walstream.predicate import literals, temporal
from walstream.predicate.types import UNREADABLE, Kind, check_cast, kind_of

_encode = msgspec.json.Encoder().encode
NO_FACTS = Catalog()
ALL_OIDS = (
    16, 17, 18, 19, 20, 21, 23, 25, 26, 28, 650, 700, 701, 774, 829, 869, 1042, 1043, 1082, 1083, 1114, 1184, 1266,
    1560, 1562, 1700, 2950, 3220, 3802, 3904, 3908, 3912, 3926, 5069,
)  # fmt: skip


def kind(oid: int) -> Kind:
    return kind_of(oid, NO_FACTS)


def equal(oid: int, left: bytes, right: bytes) -> bool:
    key = kind(oid).equal
    assert key is not None
    assert (hash(key(left)) == hash(key(right))) or key(left) != key(right)
    return bool(key(left) == key(right))


def is_sorted(oid: int, *cells: bytes) -> bool:
    key = kind(oid).order
    assert key is not None
    return all(key(low) < key(high) for low, high in itertools.pairwise(cells))


@pytest.mark.parametrize("oid", ALL_OIDS)
@given(cell=st.binary(max_size=12))
def test_a_key_raises_nothing_but_what_its_callers_expect(oid: int, cell: bytes) -> None:
    for key in (kind(oid).equal, kind(oid).order, kind(oid).text):
        if key is None:
            continue
        try:
            key(cell)
        except UNREADABLE:
            continue


@given(st.integers(), st.integers())
def test_integers_order_as_numbers_and_oids_without_their_quotes(left: int, right: int) -> None:
    for oid in (20, 21, 23):
        assert is_sorted(oid, b"%d" % left, b"%d" % right) is (left < right)
    assert is_sorted(26, b'"%d"' % left, b'"%d"' % right) is (left < right)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False, allow_infinity=False))
def test_numerics_compare_exactly_whatever_their_scale(left: Decimal, right: Decimal) -> None:
    one, two = f"{left:f}".encode(), f"{right:f}".encode()
    assert is_sorted(1700, one, two) is (left < right)
    assert equal(1700, one, two) is (left == right)
    assert equal(1700, one, one + (b"0" if b"." in one else b".0"))


def test_numbers_beyond_a_double_differ_in_numeric_and_minus_zero_is_zero_in_floats() -> None:
    assert not equal(1700, b"0.1", b"0.1000000000000000055")
    assert not equal(1700, b"9007199254740993", b"9007199254740992")
    assert equal(701, b"-0", b"0")
    assert is_sorted(701, b"-1e300", b"-1", b"0", b"1e-7", b"0.1")


@given(st.text(), st.text())
def test_text_orders_by_code_point_however_its_json_is_escaped(left: str, right: str) -> None:
    escaped = '"{}"'.format("".join(f"\\u{ord(char):04x}" if ord(char) < 0xD800 else char for char in left)).encode()
    assert equal(25, escaped, _encode(left))
    assert is_sorted(25, escaped, _encode(right)) is (left < right)


def test_blanks_behind_char_do_not_count_and_patterns_see_them() -> None:
    assert equal(1042, b'"a  "', b'"a"')
    assert not equal(1042, b'" a"', b'"a"')
    assert not equal(25, b'"a  "', b'"a"')
    text = kind(1042).text
    assert text is not None
    assert text(b'"a  "') == "a  "


@given(st.dates(), st.dates())
def test_dates_order_as_days(left: dt.date, right: dt.date) -> None:
    one, two = (f'"{day.isoformat()}"'.encode() for day in (left, right))
    assert is_sorted(1082, one, two) is (left < right)
    assert temporal.date(two)[0] - temporal.date(one)[0] == (right - left).days


@given(st.datetimes(), st.datetimes())
def test_timestamps_order_as_moments(left: dt.datetime, right: dt.datetime) -> None:
    one, two = (f'"{moment.isoformat()}"'.encode() for moment in (left, right))
    assert is_sorted(1114, one, two) is (left < right)


_offsets = st.integers(-959, 959).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
# A day away from both ends of what datetime can hold, so that every offset fits.
_moments = st.integers(86_400_000_000, 315_537_724_800_000_000).flatmap(
    lambda micro: _offsets.map(
        lambda zone: (dt.datetime.min.replace(tzinfo=dt.UTC) + dt.timedelta(0, 0, micro)).astimezone(zone)
    )
)


@given(_moments, _moments)
def test_timestamps_with_zones_order_as_moments_at_any_offset(left: dt.datetime, right: dt.datetime) -> None:
    one, two = (f'"{moment.isoformat()}"'.encode() for moment in (left, right))
    assert is_sorted(1184, one, two) is (left < right)
    assert equal(1184, one, f'"{left.astimezone(dt.UTC).isoformat()}"'.encode())


def test_infinity_bc_and_years_of_five_digits_have_their_places() -> None:
    assert is_sorted(
        1082,
        b'"-infinity"',
        b'"4713-01-01 BC"',
        b'"0001-12-31 BC"',
        b'"0001-01-01"',
        b'"9999-12-31"',
        b'"12345-01-01"',
        b'"infinity"',
    )
    assert temporal.date(b'"0001-01-01"')[0] - temporal.date(b'"0001-12-31 BC"')[0] == 1
    assert temporal.date(b'"0001-03-01 BC"')[0] - temporal.date(b'"0001-02-28 BC"')[0] == 2  # 1 BC is a leap year
    assert is_sorted(1114, b'"-infinity"', b'"0044-03-15T12:00:00 BC"', b'"2024-02-29T13:14:15"', b'"infinity"')
    assert is_sorted(
        1184, b'"-infinity"', b'"0044-03-15T12:00:00+00:00 BC"', b'"12345-01-01T00:00:00+00:00"', b'"infinity"'
    )


def test_the_end_of_a_day_is_later_than_any_time_and_zones_decide_between_equal_moments() -> None:
    assert is_sorted(1083, b'"00:00:00"', b'"00:00:00.000001"', b'"13:14:15.2"', b'"23:59:59.999999"', b'"24:00:00"')
    assert is_sorted(1266, b'"13:00:00+02"', b'"12:00:00+00"', b'"11:00:00-01"', b'"12:00:00-00:30"')
    assert not equal(1266, b'"13:00:00+01"', b'"12:00:00+00"')


def test_bits_and_bytes_order_by_content_then_length() -> None:
    for oid in (17, 1560):
        assert is_sorted(oid, b'""', b'"00"', b'"01"', b'"010"', b'"1"')


def test_jsonb_is_equal_by_value_whatever_its_text() -> None:
    assert equal(3802, b'{"a": 1, "b": [1, 2.50]}', b'{"b":[1.0,2.5],"a":1.00}')
    assert equal(3802, b"1e1", b"10")
    for left, right in (
        (b"1", b"true"),
        (b"0", b"false"),
        (b'"1"', b"1"),
        (b"[]", b"{}"),
        (b"[1,2]", b"[2,1]"),
        (b"[[]]", b"[]"),
    ):
        assert not equal(3802, left, right)
    assert equal(3802, b"123456789012345678901234567890", b"1.23456789012345678901234567890e29")


def test_a_cell_asked_for_again_is_not_read_again_and_another_one_is() -> None:
    key = kind(1082).equal
    assert key is not None
    first, second = b'"2024-02-29"', b'"2024-03-01"'
    assert [key(first), key(first), key(second), key(first)] == [
        temporal.date(c) for c in (first, first, second, first)
    ]


def read(oid: int, text: str) -> bytes:
    cast = kind(oid).cast
    assert cast is not None
    return cast(text)


@pytest.mark.parametrize(
    ("oid", "text", "cell"),
    [
        (23, "007", b"7"),
        (23, " \t+7\n", b"7"),
        (21, "-32768", b"-32768"),
        (20, "9223372036854775807", b"9223372036854775807"),
        (16, " YES ", b"true"),
        (16, "of", b"false"),
        (16, "T", b"true"),
        (16, "0", b"false"),
        (2950, "{A0EEBC99-9C0B4EF8-bb6d6bb9-bd380a11}", b'"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
        (25, " a ", b'" a "'),
        (1042, "a  ", b'"a"'),
        (19, "é" * 40, _encode("é" * 31)),
        (1560, "B101", b'"101"'),
        (1562, "xA1", b'"10100001"'),
        (1562, "", b'""'),
    ],
)
def test_literals_are_read_as_postgresql_reads_them(oid: int, text: str, cell: bytes) -> None:
    assert read(oid, text) == cell


@pytest.mark.parametrize(
    ("oid", "text", "said"),
    [
        (23, "1.5", "invalid input syntax for type integer"),
        (23, "", "invalid input syntax"),
        (23, "1_000", "invalid input"),
        (23, "٣", "invalid input syntax"),
        (21, "32768", "out of range for type smallint"),
        (20, "9" * 5000, "out of range for type bigint"),
        (16, "o", "invalid input syntax for type boolean"),
        (16, "maybe", "invalid input syntax for type boolean"),
        (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1", "invalid input syntax for type uuid"),
        (2950, "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "invalid input syntax for type uuid"),
        (2950, "a0eebc999-c0b-4ef8-bb6d-6bb9bd380a11", "invalid input syntax for type uuid"),
        (25, "a\0b", "0x00"),
        (1560, "12", "binary"),
        (1560, "xg", "hexadecimal"),
    ],
)
def test_literals_that_postgresql_refuses_are_refused_in_its_words(oid: int, text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        read(oid, text)


@given(st.text())
def test_reading_a_literal_raises_nothing_but_filter_errors(text: str) -> None:
    for cast in (literals.integer("integer", 32), literals.boolean, literals.uuid, literals.name, literals.bits):
        try:
            cast(text)
        except FilterError:
            continue


@pytest.mark.parametrize(
    ("cast", "oid"),
    [
        ("int4", 23), ("integer", 23), ("pg_catalog.int4", 23), ("boolean", 16), ("timestamp with time zone", 1184),
        ("text", 1043), ("character varying", 1043), ("char", 1042), ("double precision", 701), ("mood", 90001),
        ("positive", 90002), ("int4", 90002),
    ],
)  # fmt: skip
def test_a_cast_may_name_the_columns_own_type(cast: str, oid: int) -> None:
    facts = Catalog()
    facts.load(types={90001: TypeInfo(90001, "mood", kind="e"), 90002: TypeInfo(90002, "positive", kind="d", base=23)})
    check_cast(cast, "x", oid, facts)


@pytest.mark.parametrize(
    ("cast", "oid"), [("int8", 23), ("text", 23), ("timestamp", 1184), ("moo", 25), ("integer", 20)]
)
def test_a_cast_to_another_type_is_refused(cast: str, oid: int) -> None:
    with pytest.raises(FilterError, match="column x is of type"):
        check_cast(cast, "x", oid, NO_FACTS)
