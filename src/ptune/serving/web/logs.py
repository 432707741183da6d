"""The log: one JSON object a line for machines, plain lines on a terminal. To standard error."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from ptune.errors import printable

_OF_THE_LIBRARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OF_THE_LIBRARY}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and what is said beside it."""

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=True, default=str)


class PlainLines(logging.Formatter):
    """For people: time, message, and what is said beside it as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """A line, and a traceback behind it where there is one."""
        said = "".join(f"  {name}={printable(str(value))}" for name, value in _fields(record).items())
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {level}{printable(record.getMessage())}{said}"
        return text + ("\n" + "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else "")


def set_up_logs(stream: TextIO | None = None) -> None:
    """Send what the server and uvicorn say to a stream, standard error by default."""
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(PlainLines() if target.isatty() else JsonLines())
    for name, level in (
        ("ptune.serve", logging.INFO),
        ("uvicorn.error", logging.WARNING),
        ("asyncio", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
