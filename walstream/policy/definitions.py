"""Functions that give a claim, by their bodies: whoever made them, and under whatever name.

A body is compared word by word, without regard to blanks, capitals and comments. One that is missing here is no error:
PostgreSQL is asked then. Where such functions are called from is seen by ``recognise``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from walstream.policy.claims import CLAIMS, ROLE_CLAIM, SUB
from walstream.policy.terms import JSON, JSONB, TEXT, UUID, Coalesce, Fixed, Member, NullIf, Read, Setting, Term

_WORD: Final = re.compile(
    r"""
    (?P<blank> \s+ | --[^\n]* | /\*(?:[^*]|\*(?!/))*\*/ )
    | (?P<text> '(?:[^']|'')*' )
    | (?P<name> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<other> ::|->>|->|[-+*/<>=~!@#%^&|`?]+|. )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)


def words(body: str) -> str:
    """A function's body in the form in which bodies are compared."""
    found = [
        match[0].lower() if match.lastgroup == "name" else match[0]
        for match in _WORD.finditer(body)
        if match.lastgroup != "blank"
    ]
    while found and found[-1] == ";":
        found.pop()
    return " ".join(found)


def term_of(body: str, result_type: int) -> Term | None:
    """What a function of SQL without arguments returns, if its body is known here. ``result_type``: its OID."""
    term = _TERMS.get(words(body))
    return term if term is not None and term.type == result_type else None


def _setting(name: str) -> str:
    return f"current_setting('{name}', true)"


def _unless_empty(name: str) -> str:
    return f"nullif({_setting(name)}, '')"


_ALL: Final = _setting(CLAIMS)
_ALL_OR_NULL: Final = _unless_empty(CLAIMS)


def _claim(name: str, cast: str, type_: int) -> Iterator[tuple[str, Term]]:
    """Ways to write one claim, cast to a type: from its own setting, from all claims, and from whichever has it."""
    own_name = f"request.jwt.claim.{name}"
    own = Setting(own_name, nullif=True)

    def cast_term(term: Term) -> Term:
        return term if type_ == TEXT else Read(term, type_)

    yield f"select {_unless_empty(own_name)}{cast}", cast_term(own)
    for json, oid in (("json", JSON), ("jsonb", JSONB)):
        safe: Term = Member(Read(Setting(CLAIMS, nullif=True), oid), name, as_text=True)
        bare: Term = Member(Read(Setting(CLAIMS), oid), name, as_text=True)
        for source, term in ((f"{_ALL_OR_NULL}::{json}", safe), (f"{_ALL}::{json}", bare)):
            yield f"select ({source} ->> '{name}'){cast}", cast_term(term)
            yield f"select nullif({source} ->> '{name}', ''){cast}", cast_term(NullIf(term, ""))
            yield f"select nullif(({source} ->> '{name}'), ''){cast}", cast_term(NullIf(term, ""))
            if not cast:
                yield f"select {source} ->> '{name}'", term
            for second in (f"{source} ->> '{name}'", f"({source} ->> '{name}')"):
                either = f"coalesce({_unless_empty(own_name)}, {second})"
                yield f"select {either}{cast}", cast_term(Coalesce((own, term)))
                yield f"select nullif({either}, ''){cast}", cast_term(NullIf(Coalesce((own, term)), ""))
                bare_first = f"coalesce({_setting(own_name)}, {second})"
                if own_name in (SUB, ROLE_CLAIM):
                    yield f"select {bare_first}{cast}", cast_term(Coalesce((Setting(own_name), term)))


def _documents() -> Iterator[tuple[str, Term]]:
    """Ways to write all claims as one document."""
    single = Setting("request.jwt.claim", nullif=True)
    for json, oid in (("json", JSON), ("jsonb", JSONB)):
        safe = Setting(CLAIMS, nullif=True)
        yield f"select {_ALL}::{json}", Read(Setting(CLAIMS), oid)
        yield f"select {_ALL_OR_NULL}::{json}", Read(safe, oid)
        both = f"coalesce({_unless_empty('request.jwt.claim')}, {_ALL_OR_NULL})::{json}"
        yield f"select {both}", Read(Coalesce((single, safe)), oid)
        empty = Fixed(TEXT, "{}")
        yield f"select coalesce({_ALL_OR_NULL}, '{{}}')::{json}", Read(Coalesce((safe, empty)), oid)
        read = Coalesce((Read(safe, oid), Read(empty, oid)))
        yield f"select coalesce({_ALL_OR_NULL}::{json}, '{{}}'::{json})", read
        yield f"select coalesce({_ALL_OR_NULL}::{json}, '{{}}')", read


def _known() -> Iterator[tuple[str, Term]]:
    yield from _claim("sub", "::uuid", UUID)
    for name in ("sub", "role", "email", "phone", "aal", "session_id"):
        yield from _claim(name, "::text", TEXT)
        yield from _claim(name, "", TEXT)
    yield from _documents()


BODIES: Final[Mapping[str, Term]] = dict(_known())
"""The bodies as somebody may have written them."""

_TERMS: Final[Mapping[str, Term]] = {words(text): term for text, term in BODIES.items()}
