"""Log lines: one JSON object a line, levels, libraries' lines among ours, and names that keep to the rule."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from walstream.telemetry import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave logging as it was found."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_event_level_and_time() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    structlog.get_logger().info(log.WAL_CONFIRMED, slot="walstream", lsn="0/1", lag_bytes=3)
    (line,) = lines(out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(line.pop("timestamp")))
    assert line == {"event": "wal.confirmed", "level": "info", "slot": "walstream", "lsn": "0/1", "lag_bytes": 3}


def test_lines_below_the_level_are_dropped() -> None:
    out = io.StringIO()
    log.configure("warning", "json", out)
    structlog.get_logger().info(log.SOCKET_OPENED)
    structlog.get_logger().warning(log.SOCKET_TOO_SLOW)
    assert [line["event"] for line in lines(out)] == [log.SOCKET_TOO_SLOW]


def test_a_module_level_logger_follows_a_later_set_up() -> None:
    logger = structlog.get_logger()
    first, second = io.StringIO(), io.StringIO()
    log.configure("info", "json", first)
    logger.info(log.SERVER_STARTED)
    log.configure("info", "json", second)
    logger.info(log.SERVER_STOPPED)
    assert [line["event"] for line in lines(first) + lines(second)] == [log.SERVER_STARTED, log.SERVER_STOPPED]


def test_exceptions_are_part_of_their_line() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        structlog.get_logger().exception(log.HANDLER_FAILED)
    (line,) = lines(out)
    assert line["event"] == "handler.failed"
    assert "ZeroDivisionError" in json.dumps(line["exception"])


def test_warnings_of_libraries_come_in_the_same_form_and_their_chatter_does_not() -> None:
    out = io.StringIO()
    log.configure("debug", "json", out)
    logging.getLogger("trio-websocket").debug("received a secret")
    logging.getLogger("some.library").warning("careful with %s", "this")
    (line,) = lines(out)
    assert (line["event"], line["level"]) == ("careful with this", "warning")


def test_a_file_gets_json_and_a_terminal_text_unless_told_otherwise() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = io.StringIO()
    log.configure("info", "", out)
    structlog.get_logger().info(log.SERVER_STARTED)
    assert lines(out)
    terminal = Terminal()
    log.configure("info", "", terminal)
    structlog.get_logger().info(log.SERVER_STARTED)
    assert "server.started" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_events_are_named_noun_dot_past_verb_and_each_only_once() -> None:
    names = [value for name, value in vars(log).items() if name.isupper() and not name.startswith("_")]
    assert len(names) > 20
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", str(name)) for name in names)
