"""Times as tags have them, and days as people write them."""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime, time, timedelta

from mlflow_e2eai.errors import InvalidInputError


def now_text() -> str:
    """This moment in UTC, as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def moment_of(text: str | None) -> datetime | None:
    """The time of a tag; None where there is no tag, or a hand wrote one that is no time."""
    with contextlib.suppress(ValueError, TypeError):
        moment = datetime.fromisoformat(str(text))
        return None if moment.tzinfo is None else moment
    return None


def time_after(last: str | None) -> str:
    """This moment, or one just after the last move's: clocks of two machines differ.

    Args:
        last: When the last move was, as `now_text` writes it; None where there was none.
    """
    now, before = datetime.now(UTC), moment_of(last)
    if before is not None:
        now = max(now, before + timedelta(milliseconds=1))
    return now.isoformat(timespec="milliseconds")


def end_of(on: str | date) -> datetime:
    """The last moment that counts: the end of a day in UTC, or a time.

    Raises:
        InvalidInputError: It is neither.
    """
    try:
        if isinstance(on, datetime):
            moment = on
        elif isinstance(on, date):
            moment = datetime.combine(on, time.max)
        elif len(on.strip()) > len("2026-11-30"):
            moment = datetime.fromisoformat(on.strip())
        else:
            return end_of(date.fromisoformat(on.strip()))
    except (ValueError, AttributeError, TypeError) as error:
        msg = f"{on!r} is no date; give one such as 2026-11-30, or 2026-11-30T12:00:00+00:00."
        raise InvalidInputError(msg) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
