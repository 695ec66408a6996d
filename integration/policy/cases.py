"""Random policies, rows and claims, all three chosen from few values so that they meet.

A condition knows whether it is one of those that walstream has to understand.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from integration.fixtures.cells import identifier

U1, U2, U3 = (f"{digit * 8}-1111-4111-8111-{digit * 12}" for digit in "ab7")
ROLES = ("alpha", "beta")

SCHEMA = """
create schema auth;
create function auth.uid() returns uuid language sql stable as $$
  select
  coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$$;
create function auth.role() returns text language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.role', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'))::text
$$;
create function auth.email() returns text language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.email', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'))::text
$$;
create function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), ''))::jsonb
$$;
create function auth.own() returns uuid language plpgsql stable as $$ begin return auth.uid(); end $$;
create function auth.refused() returns boolean language sql stable as 'select true';
revoke execute on function auth.refused() from public;
create collation public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create type public.mood as enum ('sad', 'ok', 'happy');
create domain public.code as text;
create table public.docs (
  id integer primary key, owner uuid, creator text, org varchar(40), team text, number integer, big bigint,
  small smallint, public boolean, status public.mood, code public.code, fixed char(5), tags text[], data jsonb,
  price numeric, seen timestamptz, loose text collate public.ci, sorted text collate "C", "Odd ""name" text
);
create table public.members (team text, who uuid);
alter table public.docs enable row level security;
"""

LOOSE = frozenset({"data", "price"})
"""Columns whose changes have one null for several values: NaN and infinity, JSON's null."""

TEXTS = ("a", "b", "", "é", "A", "1", "-1", "true", "sad", "x'y", U1, U1.upper(), "a ", "Ünï\U0001f600", "a\\b", "null")
INTS = ("0", "1", "2", "-1", "32767", "2147483647")
BIGS = (*INTS, "3000000000", "-9223372036854775808")
UUIDS = (U1, U2, U3)

COLUMNS: dict[str, Sequence[str]] = {
    "owner": UUIDS,
    "creator": TEXTS,
    "org": tuple(text for text in TEXTS if len(text) <= 40),
    "team": TEXTS,
    "number": INTS,
    "big": BIGS,
    "small": INTS[:5],
    "public": ("true", "false"),
    "status": ("sad", "ok", "happy"),
    "code": TEXTS,
    "fixed": ("a", "b", "", "abcde"),
    "tags": ("{}", "{a,b}", "{NULL}", '{"x\'y"}'),
    "data": ("null", "1", '{"k": "a"}', '"a"', "[]"),
    "price": ("1.50", "NaN", "0", "Infinity"),
    "seen": ("2024-02-29 12:00+00", "infinity", "1999-01-01 00:00+00"),
    "loose": ("a", "A", "b"),
    "sorted": TEXTS,
    'Odd "name': TEXTS,
}

KEYS = ("sub", "role", "email", "org", "org_id", "admin", "teams", "app_metadata", "x'y")


def quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def row(rng: random.Random) -> dict[str, str | None]:
    """A row's values as literals."""
    return {name: None if rng.random() < 0.2 else rng.choice(values) for name, values in COLUMNS.items()}


# Claims

_SCALARS = (
    *map(json.dumps, TEXTS), '"{aaaaaaaa-1111-4111-8111-aaaaaaaaaaaa}"', "1", "2", "1.0", "1.50", "-0", "-0.0", "1e0",
    "3000000000", "true", "false", "null", '"t"', '"maybe"', "1E400", '" 1 "', "99999999999999999999", '"0x1"', '"1_0"',
)  # fmt: skip
_HOSTILE = ('"a\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0061"', "{}", "[]", '{"k": [1, "a"]}', "[[1]]")
_WHOLE = ("", "{}", "[]", '"x"', "null", "1", "not json", "{", '{"sub": "a"} x', " {} ", '{"a": "\\u0000"}', "NaN")


def claims(rng: random.Random) -> str:
    """A token's claims as text, now and then of a kind that no token has."""
    if rng.random() < 0.03:
        return rng.choice(_WHOLE)
    wild = rng.random() < 0.3
    members = [_member(rng, key, wild) for key in KEYS if rng.random() < 0.75]
    if rng.random() < 0.1:
        members.append(_member(rng, rng.choice(KEYS), wild))  # a key for the second time
    space = rng.choice(("", " "))
    return "{" + f",{space}".join(members) + "}"


def _member(rng: random.Random, key: str, wild: bool) -> str:
    if key == "app_metadata" and not (wild and rng.random() < 0.15):
        inner = [_member(rng, name, wild) for name in KEYS if name != "app_metadata" and rng.random() < 0.7]
        return f'"app_metadata": {{{",".join(inner)}}}'
    return f"{json.dumps(key)}: {_value(rng, key, wild)}"


def _value(rng: random.Random, key: str, wild: bool) -> str:
    draw = rng.random()
    if wild and draw < 0.03:
        return rng.choice(_HOSTILE)
    if wild and draw < 0.2:
        return rng.choice(_SCALARS)
    if key == "sub":
        return json.dumps(rng.choice((*UUIDS, U1.upper())))
    if key == "teams":
        pool = rng.choice((TEXTS, UUIDS, INTS))
        items = [json.dumps(rng.choice(pool)) for _ in range(rng.choice((0, 1, 2, 3)))]
        if wild and rng.random() < 0.25:
            items.append(rng.choice(("null", "1", "1.0", "true", "{}", '"é"')))
        return f"[{', '.join(items)}]"
    if key == "org_id":
        return rng.choice(("1", "2", '"1"', "0", "-1", "32767"))
    if key == "admin":
        return rng.choice(("true", "false", '"true"', "null"))
    if key == "role":
        return rng.choice(('"authenticated"', '"anon"', '"a"'))
    return json.dumps(rng.choice(TEXTS), ensure_ascii=rng.random() < 0.5)


# Conditions


class Condition(NamedTuple):
    """``known``: walstream has to understand it."""

    sql: str
    known: bool = True


def _key(rng: random.Random) -> str:
    return quote(rng.choice(KEYS))


def _document(rng: random.Random) -> str:
    """A jsonb value."""
    return rng.choice(
        (
            "auth.jwt()",
            "nullif(current_setting('request.jwt.claims', true), '')::jsonb",
            "current_setting('request.jwt.claims', true)::json::jsonb",
            "current_setting('request.jwt.claims', true)::jsonb",
            "(auth.jwt() -> 'app_metadata')",
            "(select auth.jwt())",
            "(select auth.jwt() -> 'app_metadata')",
            "(auth.jwt() #> '{app_metadata}')",
        )
    )


def _json(rng: random.Random) -> str:
    """A value of either type of JSON."""
    return rng.choice(
        (
            _document(rng),
            "current_setting('request.jwt.claims', true)::json",
            "nullif(current_setting('request.jwt.claims', true), '')::json",
            "(current_setting('request.jwt.claims')::json -> 'app_metadata')",
        )
    )


def text(rng: random.Random, depth: int = 0) -> str:
    """A text made of claims, or a constant."""
    draw = rng.random()
    if depth < 2 and draw < 0.1:
        return f"coalesce({text(rng, depth + 1)}, {text(rng, depth + 1)})"
    if depth < 2 and draw < 0.15:
        return f"nullif({text(rng, depth + 1)}, {quote(rng.choice(TEXTS))})"
    if depth < 2 and draw < 0.2:
        return f"({text(rng, depth + 1)})::varchar"
    found = rng.choice(
        (
            f"({_json(rng)} ->> {_key(rng)})",
            f"({_json(rng)} ->> {_key(rng)})",
            f"({_json(rng)} -> 'teams' ->> {rng.choice((0, 1, -1))})",
            f"({_document(rng)} #>> '{{app_metadata,{rng.choice(('org', 'role', 'sub'))}}}')",
            "current_setting('request.jwt.claim.sub', true)",
            "nullif(current_setting('request.jwt.claim.role', true), '')",
            "auth.role()",
            "auth.email()",
            "auth.uid()::text",
            f"({_number(rng, 'int')})::text",
            "current_user::text",
            "null::text",
            quote(rng.choice(TEXTS)) + "::text",
        )
    )
    return f"(select {found})" if rng.random() < 0.25 else found


def uuid(rng: random.Random) -> str:
    """A uuid made of claims, or a constant."""
    if rng.random() < 0.04:
        return f"({text(rng)})::uuid"
    return rng.choice(
        (
            "auth.uid()",
            "(select auth.uid())",
            f"({_json(rng)} ->> 'sub')::uuid",
            f"(select ({_json(rng)} ->> 'sub')::uuid)",
            "current_setting('request.jwt.claim.sub', true)::uuid",
            "null::uuid",
            f"nullif({_json(rng)} ->> 'sub', '')::uuid",
            quote(rng.choice(UUIDS)) + "::uuid",
        )
    )


def _number(rng: random.Random, type_name: str) -> str:
    key = "'org_id'" if rng.random() < 0.95 else _key(rng)
    return rng.choice(
        (
            f"({_json(rng)} ->> {key})::{type_name}",
            f"(select ({_json(rng)} ->> {key})::{type_name})",
            f"({_document(rng)} -> {key})::{type_name}",
            f"({_json(rng)} ->> {key})::bigint::{type_name}",
            rng.choice(INTS[:4]),
        )
    )


def number(rng: random.Random) -> str:
    """An integer of some size."""
    return _number(rng, rng.choice(("int", "bigint", "smallint")))


def truth(rng: random.Random) -> str:
    """A boolean made of claims."""
    key = "'admin'" if rng.random() < 0.95 else _key(rng)
    return rng.choice((f"({_json(rng)} ->> {key})::boolean", f"({_document(rng)} -> {key})::boolean"))


def _elements(rng: random.Random, cast: str = "") -> str:
    """A sub-select of a claim's list."""
    if rng.random() < 0.7:
        document = f"{_document(rng)} -> 'teams'"
        function = "jsonb_array_elements_text"
    else:
        document = "current_setting('request.jwt.claims', true)::json -> 'teams'"
        function = "json_array_elements_text"
    return rng.choice(
        (
            f"select {function}({document}){cast}",
            f"select value{cast} from {function}({document})",
            f"select e.t{cast} from {function}({document}) as e (t)",
        )
    )


_TEXT_COLUMNS = ("creator", "org", "team", "code", "sorted", '"Odd ""name"')
_INT_COLUMNS = ("number", "big", "small")
_EQUAL = ("=", "=", "=", "<>")
_ORDER = ("<", "<=", ">", ">=", "=", "<>")


def _compare(rng: random.Random, left: str, right: str, signs: Sequence[str]) -> str:
    if rng.random() < 0.3:
        left, right = right, left
    return f"{left} {rng.choice(signs)} {right}"


def _listed(rng: random.Random, make: Callable[[random.Random], str]) -> str:
    return ", ".join(make(rng) for _ in range(rng.randint(1, 3)))


def _text_leaf(rng: random.Random) -> str:
    column = rng.choice(_TEXT_COLUMNS)
    literals = _listed(rng, lambda rng: "null" if rng.random() < 0.1 else quote(rng.choice(TEXTS)))
    return rng.choice(
        (
            _compare(rng, column, text(rng), _EQUAL),
            _compare(rng, column, text(rng), _EQUAL),
            _compare(rng, "sorted", quote(rng.choice(TEXTS)), _ORDER),
            f"{column} {rng.choice(('in', 'not in'))} ({literals})",
            f"{column} = any (array[{literals}])",
            f"{column} <> all (array[{literals}])",
            f"{column} = any ('{{a,b,é,\"a b\"}}'::text[])",
            f"{column} <> all ('{{}}'::text[])",
            f"{column} = any (array[{_listed(rng, text)}]::text[])",
            f"{column} = any (array({_elements(rng)}))",
            f"{column} {rng.choice(('in', 'not in'))} ({_elements(rng)})",
            f"{column} = any (({_elements(rng)}))",
            f"{column} = any (string_to_array({text(rng)}, ','))",
            f"({_document(rng)} -> 'teams') ? {column}",
            f"{_document(rng)} ? {column}",
            f"{column} is distinct from {text(rng)}",
            f"{text(rng)} is not distinct from {column}",
            f"{column} = current_user",
        )
    )


def _typed_leaf(rng: random.Random) -> str:
    printed = rng.choice(("owner", *_INT_COLUMNS))
    column = rng.choice(_INT_COLUMNS)
    return rng.choice(
        (
            _compare(rng, "owner", uuid(rng), _EQUAL),
            _compare(rng, "owner", uuid(rng), _EQUAL),
            _compare(rng, "owner", quote(U2), _ORDER),
            f"owner in ({_elements(rng, '::uuid')})",
            f"owner = any (array({_elements(rng, '::uuid')}))",
            f"owner in ({_listed(rng, uuid)})" if rng.random() < 0.5 else f"owner = any (array[{_listed(rng, uuid)}])",
            f"owner = any ('{{{U1},{U2}}}'::uuid[])",
            f"owner is distinct from {uuid(rng)}",
            _compare(rng, column, number(rng), _ORDER),
            _compare(rng, column, number(rng), _EQUAL),
            f"{column} {rng.choice(('in', 'not in'))} (1, 2{rng.choice(('', ', null'))})",
            f"{column} = any ('{{1,2,-1}}'::int[])",
            f"number in ({_elements(rng, '::int')})",
            f"big = any (array({_elements(rng, '::bigint')}))",
            f"{column} between {number(rng)} and {number(rng)}",
            _compare(rng, f"{printed}::text", text(rng), _EQUAL),
            f"({_document(rng)} -> 'teams') ? {printed}::text",
            f"{printed}::text = any (array({_elements(rng)}))",
            f"{printed}::text is distinct from {text(rng)}",
        )
    )


def _plain_leaf(rng: random.Random) -> str:
    status = quote(rng.choice(COLUMNS["status"]))
    return rng.choice(
        (
            "public",
            f"public is {rng.choice(('', 'not '))}{rng.choice(('true', 'false', 'unknown', 'null'))}",
            f"coalesce(public, {rng.choice(('true', 'false'))})",
            _compare(rng, "public", truth(rng), _EQUAL),
            "public = true",
            _compare(rng, "status", f"{status}::public.mood", _ORDER),
            f"status in ({status}, 'ok')",
            f"status is distinct from {status}",
            f"fixed = {quote(rng.choice(('a', 'a    ', 'x', '')))}",
            f"{identifier(rng.choice(tuple(COLUMNS)))} is {rng.choice(('', 'not '))}null",
            rng.choice(("true", "false", "null::boolean")),
        )
    )


def _claim_leaf(rng: random.Random) -> str:
    return rng.choice(
        (
            "auth.role() = 'authenticated'",
            "(select auth.role()) = 'authenticated'",
            "(select auth.role() = 'authenticated')",
            f"auth.uid() is {rng.choice(('', 'not '))}null",
            f"{text(rng)} is {rng.choice(('', 'not '))}null",
            _compare(rng, text(rng), text(rng), _EQUAL),
            _compare(rng, uuid(rng), uuid(rng), _EQUAL),
            _compare(rng, number(rng), number(rng), _ORDER),
            truth(rng),
            f"coalesce({truth(rng)}, false)",
            f"({truth(rng)}) is true",
            f"{rng.choice(('current_user', 'current_role', 'user'))} {rng.choice(_EQUAL)} {quote(rng.choice(ROLES))}",
            f"{text(rng)} in ({_listed(rng, text)})",
            f"{text(rng)} = any (array({_elements(rng)}))",
            f"{text(rng)} in ({_elements(rng)})",
            f"({_document(rng)} -> 'teams') ? {quote(rng.choice(TEXTS))}",
            f"{_document(rng)} ? {text(rng)}",
            f"{text(rng)} is distinct from {text(rng)}",
            f"current_setting('role') = {quote(rng.choice(ROLES))}",
        )
    )


def _unknown_leaf(rng: random.Random) -> str:
    return rng.choice(
        (
            "exists (select 1 from public.members m where m.team = docs.team and m.who = auth.uid())",
            "team in (select m.team from public.members m where m.who = (select auth.uid()))",
            "length(team) > 1",
            "team like 'a%'",
            "lower(team) = 'a'",
            "price > 1",
            "data ->> 'k' = 'a'",
            "'a' = any (tags)",
            "tags @> array['a']",
            "seen < now()",
            "loose = 'A'",
            "creator = team",
            "number + 1 = 2",
            "owner = auth.own()",
            "owner::text < 'b'",
            "case when public then true else team = 'a' end",
            f"creator = upper({text(rng)})",
            "creator = current_setting('app.tenant', true)",
            'auth.jwt() @> \'{"role": "authenticated"}\'',
            f'team > {quote("a")} collate "C"',
        )
    )


def condition(rng: random.Random, depth: int = 0) -> Condition:
    """A condition of up to three levels, sometimes one that PostgreSQL has to be asked about."""
    draw = rng.random()
    if depth < 3 and draw < 0.3:
        parts = [condition(rng, depth + 1) for _ in range(rng.randint(2, 3))]
        word = rng.choice((" and ", " or "))
        return Condition(word.join(f"({part.sql})" for part in parts), all(part.known for part in parts))
    if depth < 3 and draw < 0.38:
        part = condition(rng, depth + 1)
        form = rng.choice(("not ({})", "({}) is true", "({}) is not false", "coalesce({}, false)"))
        return Condition(form.format(part.sql), part.known)
    if draw < 0.44:
        return Condition(_unknown_leaf(rng), known=False)
    return Condition(rng.choice((_text_leaf, _text_leaf, _typed_leaf, _typed_leaf, _plain_leaf, _claim_leaf))(rng))
