"""Values that a policy makes of claims alone: what PostgreSQL computes for a viewer, or the admission not to know.

Conditions on columns are in ``formula``; which SQL becomes which term is told by ``recognise``.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec

from walstream.errors import FilterError
from walstream.policy.claims import Json, Number, parse, session_settings
from walstream.policy.model import Viewer
from walstream.predicate import literals

BOOL, NAME, INT8, INT2, INT4, TEXT, JSON, VARCHAR, UUID, JSONB = 16, 19, 20, 21, 23, 25, 114, 1043, 2950, 3802

_INTEGERS: Final = {INT2: ("smallint", 16), INT4: ("integer", 32), INT8: ("bigint", 64)}

INPUTS: Final = {
    BOOL: literals.boolean,
    UUID: literals.uuid,
    **{oid: literals.integer(name, bits) for oid, (name, bits) in _INTEGERS.items()},
}
"""Input functions by type; they raise FilterError where PostgreSQL raises an error."""

_DIGITS_MAX: Final = 1000


class Unsure(Exception):
    """PostgreSQL raises an error here, or computes what is not repeated: it has to be asked."""


class Document(msgspec.Struct, frozen=True):
    """A value of type json or (``binary``) jsonb; a JSON null is one, too, and no SQL NULL."""

    value: Any  # Json
    binary: bool


Scalar: TypeAlias = "str | int | bool | Document | None"
"""None is NULL; a text, a name and a uuid (in its canonical form) are str."""


class Session:
    """What PostgreSQL's session knows of one viewer."""

    __slots__ = ("_documents", "role", "settings")

    def __init__(self, viewer: Viewer) -> None:
        self.role = viewer.role
        self.settings = session_settings(viewer)
        self._documents: dict[str, Json] = {}

    def document(self, text: str) -> Json:
        """A text cast to json or jsonb. Raises Unsure for what not both take."""
        if text not in self._documents:
            self._documents[text] = _document(text)
        return self._documents[text]


def _document(text: str) -> Json:
    try:
        text.encode()
        document = parse(text)
    except ValueError:
        raise Unsure("no JSON") from None
    if "\\u" in text:
        _check(document)
    return document


def _check(value: Json) -> None:
    """Raise Unsure for texts that no database has: json takes them and fails later, jsonb at once."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise Unsure("a text that is no text")
    elif isinstance(value, dict):
        for key, member in value.items():
            _check(key)
            _check(member)
    elif isinstance(value, list):
        for item in value:
            _check(item)


def _check_numbers(value: Json) -> None:
    """Raise Unsure for numbers with exponents, which jsonb may not be able to hold, and for very long ones."""
    if isinstance(value, Number):
        if "e" in value.text or "E" in value.text or len(value.text) > _DIGITS_MAX:
            raise Unsure("a number that is written differently in jsonb")
    elif isinstance(value, dict):
        for member in value.values():
            _check_numbers(member)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item)


class _Term(msgspec.Struct, frozen=True):
    def __call__(self, session: Session) -> Scalar:
        """What PostgreSQL computes. Raises Unsure."""
        return self._of(session)

    def _of(self, session: Session) -> Scalar:
        raise Unsure(type(self).__name__)


class Fixed(_Term, frozen=True):
    """A constant of ``type``."""

    type: int
    value: str | int | bool | None

    def _of(self, session: Session) -> Scalar:
        return self.value


class Setting(_Term, frozen=True):
    """``current_setting(name, missing_ok)``, and with ``nullif`` what NULLIF(…, '') makes of it."""

    name: str
    missing_ok: bool = True
    nullif: bool = False
    type: int = TEXT

    def _of(self, session: Session) -> Scalar:
        if self.name in session.settings:
            text = session.settings[self.name]
            return None if self.nullif and not text else text
        # A setting of an extension's kind that nobody set is NULL, and "" if somebody once set it in this session.
        if self.missing_ok and self.nullif and (self.name + ".").startswith("request.jwt.claim."):
            return None
        raise Unsure(f"the setting {self.name}")


class NullIf(_Term, frozen=True):
    """``nullif(part, text)``."""

    part: Term
    text: str
    type: int = TEXT

    def _of(self, session: Session) -> Scalar:
        value = self.part(session)
        return None if value == self.text else value


class Coalesce(_Term, frozen=True):
    """``coalesce(parts)``. The planner may evaluate parts that the executor would not, and meet their errors."""

    parts: tuple[Term, ...]

    @property
    def type(self) -> int:
        """OID of the value's type."""
        return self.parts[0].type

    def _of(self, session: Session) -> Scalar:
        values = [part(session) for part in self.parts]
        return next((value for value in values if value is not None), None)


class Read(_Term, frozen=True):
    """A text by the input function of ``type``; a jsonb scalar by its cast to it; a json as jsonb."""

    part: Term
    type: int

    def _of(self, session: Session) -> Scalar:
        value = self.part(session)
        if value is None:
            return None
        if isinstance(value, Document):
            return self._of_document(value)
        assert isinstance(value, str)
        if self.type in (JSON, JSONB):
            document = session.document(value)
            if self.type == JSONB:
                _check_numbers(document)
            return Document(document, self.type == JSONB)
        return read_text(value, self.type)

    def _of_document(self, document: Document) -> Scalar:
        value = document.value
        if self.type == JSONB:
            _check_numbers(value)
            return Document(value, binary=True)
        if self.type == BOOL and isinstance(value, bool):
            return value
        if self.type in _INTEGERS and isinstance(value, Number):
            return read_text(value.text, self.type)
        raise Unsure("a JSON value of another kind")


def read_text(text: str, oid: int) -> str | int | bool:
    """A text as a value of the type. Raises Unsure."""
    try:
        value = INPUTS[oid](text)
    except FilterError:
        raise Unsure("no value of the type") from None
    assert isinstance(value, str | int)
    return value


class Print(_Term, frozen=True):
    """A uuid, an integer or a boolean as text."""

    part: Term
    type: int = TEXT

    def _of(self, session: Session) -> Scalar:
        value = self.part(session)
        return None if value is None else print_scalar(value)


def print_scalar(value: Scalar) -> str:
    """A value that is not NULL as its cast to text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    assert isinstance(value, str | int)
    return str(value)


class Resize(_Term, frozen=True):
    """An integer as one of another size."""

    part: Term
    type: int

    def _of(self, session: Session) -> Scalar:
        value = self.part(session)
        return None if value is None else read_text(print_scalar(value), self.type)


class Member(_Term, frozen=True):
    """``part -> key`` and (``as_text``) ``part ->> key``, for an object's member or an array's item."""

    part: Term
    key: str | int
    as_text: bool = False

    @property
    def type(self) -> int:
        """OID of the value's type."""
        return TEXT if self.as_text else self.part.type

    def _of(self, session: Session) -> Scalar:
        document = self.part(session)
        if document is None:
            return None
        assert isinstance(document, Document)
        return _picked(_member(document.value, self.key), document.binary, self.as_text)


class Path(_Term, frozen=True):
    """``part #> keys`` and (``as_text``) ``part #>> keys``; of jsonb, whose equal keys are one by then."""

    part: Term
    keys: tuple[str, ...]
    as_text: bool = False

    @property
    def type(self) -> int:
        """OID of the value's type."""
        return TEXT if self.as_text else self.part.type

    def _of(self, session: Session) -> Scalar:
        document = self.part(session)
        if document is None:
            return None
        assert isinstance(document, Document)
        value = document.value
        for key in self.keys:
            if isinstance(value, list):
                raise Unsure("a path into an array")
            value = _member(value, key)
            if value is _ABSENT:
                return None
        return _picked(value, document.binary, self.as_text)


_ABSENT: Final = object()


def _member(value: Any, key: str | int) -> Any:
    if isinstance(key, str):
        return value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
    if isinstance(value, list):
        return value[key] if -len(value) <= key < len(value) else _ABSENT
    if isinstance(value, dict):
        return _ABSENT
    raise Unsure("a scalar's item")


def _picked(value: Any, binary: bool, as_text: bool) -> Scalar:
    if value is _ABSENT:
        return None
    return json_text(value, binary) if as_text else Document(value, binary)


def json_text(value: Json, binary: bool) -> str | None:
    """A JSON value as ``->>`` gives it. Raises Unsure for what the server may write in another way."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case Number(text):
            # jsonb has numeric's form: without exponents, and zero has no sign.
            if binary and text[:1] == "-" and not text.strip("-0."):
                return text[1:]
            return text
    raise Unsure("an object or an array as text")


class CurrentUser(_Term, frozen=True):
    """``current_user``, ``current_role``, ``user``, and these as text."""

    type: int = NAME

    def _of(self, session: Session) -> Scalar:
        return session.role


Term: TypeAlias = Fixed | Setting | NullIf | Coalesce | Read | Print | Resize | Member | Path | CurrentUser


class _List(msgspec.Struct, frozen=True):
    def __call__(self, session: Session) -> tuple[Scalar, ...] | None:
        """The items that PostgreSQL computes; None for NULL. Raises Unsure."""
        return self._of(session)

    def _of(self, session: Session) -> tuple[Scalar, ...] | None:
        raise Unsure(type(self).__name__)


class Listed(_List, frozen=True):
    """``array[…]``, ``in (…)``."""

    parts: tuple[Term, ...]

    @property
    def type(self) -> int:
        """OID of the value's type."""
        return self.parts[0].type if self.parts else TEXT

    def _of(self, session: Session) -> tuple[Scalar, ...] | None:
        return tuple([part(session) for part in self.parts])


class Elements(_List, frozen=True):
    """All that ``jsonb_array_elements_text(part)`` or the function of json returns, each read as ``type``."""

    part: Term
    type: int = TEXT

    def _of(self, session: Session) -> tuple[Scalar, ...] | None:
        document = self.part(session)
        if document is None:
            return ()
        assert isinstance(document, Document)
        if not isinstance(document.value, list):
            raise Unsure("elements of what is no array")
        texts = [json_text(item, document.binary) for item in document.value]
        if self.type == TEXT:
            return tuple(texts)
        return tuple([None if text is None else read_text(text, self.type) for text in texts])


class Parts(_List, frozen=True):
    """``string_to_array(part, delimiter)``."""

    part: Term
    delimiter: str
    type: int = TEXT

    def _of(self, session: Session) -> tuple[Scalar, ...] | None:
        text = self.part(session)
        if text is None:
            return None
        assert isinstance(text, str)
        return tuple(text.split(self.delimiter)) if text else ()


List: TypeAlias = Listed | Elements | Parts

Comparison: TypeAlias = Literal["eq", "neq", "lt", "lte", "gt", "gte"]
