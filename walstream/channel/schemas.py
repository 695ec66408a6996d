"""JSON Schemas of a channel's messages: compiled once, asked for every message, bounded in what they may cost.

A schema comes from the channel's ``metadata.schemas``, by event name or ``*`` for all others. It is checked by
``jsonschema`` (draft 2020-12 unless ``$schema`` says otherwise), with three changes for the sake of whoever waits:
patterns are matched without backtracking, ``uniqueItems`` in one pass, and a check ends after ``STEPS_MAX`` keywords.
Nothing is ever fetched for a ``$ref``; ``format`` is a remark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
from jsonschema import FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from walstream.errors import FilterError
from walstream.predicate.like import Matcher
from walstream.predicate.regex import matcher

ANY_EVENT: Final = "*"
STEPS_MAX: Final = 20_000
"""Keywords evaluated for one message; about a tenth of a second."""

SCHEMA_BYTES_MAX: Final = 131_072
"""Of all schemas of a channel together."""

TEXT_MAX: Final = 300
"""Characters of the text that the sender gets."""

_NO_FORMATS: Final = FormatChecker(())
"""The library's own would have Python compile every pattern, which warns of some and takes any number of repeats."""

_encode: Final = msgspec.json.Encoder(order="sorted").encode


class _TooMuch(Exception):
    """A check has used up its steps, or a text is too long for its pattern."""


class _Steps:
    """How many keywords the running check may still evaluate; one check runs at a time."""

    left = STEPS_MAX


class SchemaFault(Exception):
    """A schema that checks nothing, and why."""


class Schemas:
    """The schemas of one channel version. What is no schema checks nothing and is named in ``faults``.

    ``faults``: event → text. Who edits metadata by command gets them as a refusal; found in the database they are
    logged, and the channel works as if they were not there: nobody's message is refused for another's mistake.
    """

    def __init__(self, value: object = None) -> None:
        self.faults: dict[str, str] = {}
        self._checks: dict[str, Any] = {}
        if value is None:
            return
        if not isinstance(value, Mapping):
            self.faults[ANY_EVENT] = "schemas is not an object of event names"
            return
        size = 0
        for event, schema in value.items():
            size += len(_encode(schema))
            try:
                if size > SCHEMA_BYTES_MAX:
                    raise SchemaFault(f"more than {SCHEMA_BYTES_MAX} bytes of schemas")
                self._checks[event] = _compiled(schema)
            except SchemaFault as fault:
                self.faults[event] = str(fault)

    def __bool__(self) -> bool:
        return bool(self._checks)

    def check(self, event: str, payload: bytes, *, binary: bool = False) -> str:
        """What is wrong with a message, "" for nothing. ``payload``: JSON text, or bytes where ``binary``.

        A schema describes JSON: bytes do not fit any. A schema whose ``$ref`` leads nowhere checks nothing.
        """
        validator = self._checks.get(event) or self._checks.get(ANY_EVENT)
        if validator is None:
            return ""
        if binary:
            return "the event has a schema, which bytes cannot fit"
        try:
            value = msgspec.json.decode(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):  # a ValueError for what is no UTF-8
            return "the payload is not JSON"
        _Steps.left = STEPS_MAX
        try:
            error = next(validator.iter_errors(value), None)
        except (_TooMuch, RecursionError):
            return "the payload takes too long to check"
        except Unresolvable as fault:
            name = event if event in self._checks else ANY_EVENT
            self.faults[name] = f"a $ref leads nowhere: {fault.ref}"
            del self._checks[name]
            return self.check(event, payload)
        return _text(error) if error is not None else ""


def _text(error: ValidationError) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    text = f"payload{where}: {error.message}"
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def _compiled(schema: object) -> Any:
    """A validator. Raises SchemaFault."""
    if not isinstance(schema, Mapping | bool):
        raise SchemaFault("a schema is an object or a boolean")
    base = validator_for(schema, default=_DEFAULT)
    try:
        base.check_schema(schema, format_checker=_NO_FORMATS)
        if isinstance(schema, Mapping):
            # Whatever part says which draft it is written in would be checked by the library's own validator.
            schema = {name: part for name, part in schema.items() if name != "$schema"}
        patterns: dict[str, Matcher] = {}
        names = _compile_patterns(schema, patterns)
        if "$schema" in names:
            raise SchemaFault("$schema stands at the top alone")
        if {"unevaluatedProperties", "patternProperties"} <= names:
            raise SchemaFault("unevaluatedProperties and patternProperties do not go together here")
        keywords = {name: _counted(check) for name, check in base.VALIDATORS.items()}
        keywords |= {
            "pattern": _counted(_pattern(patterns)),
            "patternProperties": _counted(_pattern_properties(patterns)),
            "additionalProperties": _counted(_additional_properties(patterns)),
            "uniqueItems": _counted(_unique_items),
        }
        validator = extend(base, keywords)
        return validator(schema, registry=Registry())
    except SchemaError as error:
        raise SchemaFault(_text(error).removeprefix("payload")) from error
    except FilterError as error:
        raise SchemaFault(f"pattern: {error.message}") from error
    except RecursionError as error:
        raise SchemaFault("nested too deep") from error


def _compile_patterns(schema: object, patterns: dict[str, Matcher]) -> set[str]:
    """Compile every pattern in a schema, wherever it stands. Returns all names of members in it."""
    names: set[str] = set()
    if isinstance(schema, Mapping):
        names |= schema.keys()
        found = schema.get("pattern")
        if isinstance(found, str):
            patterns[found] = matcher(found)
        found = schema.get("patternProperties")
        if isinstance(found, Mapping):
            for name in found:
                patterns[name] = matcher(name)
        for part in schema.values():
            names |= _compile_patterns(part, patterns)
    elif isinstance(schema, list):
        for part in schema:
            names |= _compile_patterns(part, patterns)
    return names


_Check = Callable[[Any, Any, Any, Any], "Iterator[ValidationError] | None"]


def _counted(check: _Check) -> _Check:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        _Steps.left -= 1 + (len(instance) >> 3 if isinstance(instance, list | dict) else 0)
        if _Steps.left < 0:
            raise _TooMuch
        return check(validator, value, instance, schema)

    return counted


def _matches(patterns: Mapping[str, Matcher], pattern: str, text: str) -> bool:
    _Steps.left -= 1 + len(text) // 100
    if _Steps.left < 0:
        raise _TooMuch
    found = patterns.get(pattern)
    if found is None:  # reached by a $ref through an unusual place
        raise _TooMuch
    try:
        return bool(found(text))
    except ValueError as error:
        raise _TooMuch from error


def _pattern(patterns: Mapping[str, Matcher]) -> _Check:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if validator.is_type(instance, "string") and not _matches(patterns, value, instance):
            yield ValidationError(f"{_shown(instance)} does not match {value!r}")

    return check


def _pattern_properties(patterns: Mapping[str, Matcher]) -> _Check:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if not validator.is_type(instance, "object"):
            return
        for pattern, part in value.items():
            for name, member in instance.items():
                if _matches(patterns, pattern, name):
                    yield from validator.descend(member, part, path=name, schema_path=pattern)

    return check


def _additional_properties(patterns: Mapping[str, Matcher]) -> _Check:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if not validator.is_type(instance, "object"):
            return
        known, named = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, member in instance.items():
            if name in known or any(_matches(patterns, pattern, name) for pattern in named):
                continue
            if value is False:
                yield ValidationError(f"the member {_shown(name)} was unexpected")
            else:
                yield from validator.descend(member, value, path=name)

    return check


def _unique_items(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not value or not validator.is_type(instance, "array"):
        return
    seen = {_encode(_plain_numbers(item)) for item in instance}
    if len(seen) < len(instance):
        yield ValidationError("the items are not all different")


def _plain_numbers(value: object) -> object:
    """1.0 is the same number as 1 to JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain_numbers(item) for name, item in value.items()}
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


_DEFAULT: Final = validator_for({"$schema": "https://json-schema.org/draft/2020-12/schema"})
