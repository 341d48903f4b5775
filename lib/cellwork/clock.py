"""Time: UTC, microseconds, everywhere. A time without a zone is refused, never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cellwork.errors import BadInput

LEAST, MOST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)
"""Between them lies what 64 bits of nanoseconds hold; pandas and others can't say a time outside."""
MOST_SECONDS = 1000 * 366 * 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICRO = timedelta(microseconds=1)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def now() -> datetime:
    return datetime.now(UTC)


def utc(at: datetime | str) -> datetime:
    """Return `at` in UTC; text is read as ISO 8601. Raises BadInput for what is neither, for a time without a zone, or one that UTC has no year for."""
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            raise BadInput("time", at, "is not ISO 8601", "write it as 2013-11-01T00:00:00Z") from None
    if not isinstance(at, datetime):
        raise BadInput("time", at, "is no ISO 8601 text", "write 2013-11-01T00:00:00Z")
    if at.tzinfo is None:
        raise BadInput("time", at.isoformat(), "has no time zone", "append 'Z' for UTC or an offset such as '-05:00'")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise BadInput("time", at.isoformat(), "is outside the years 1 to 9999 in UTC", "send one of those") from None


def kept(at: datetime | str) -> datetime:
    """Return `at` in UTC, for a time that comes from outside and is kept; raises BadInput for one that not every library can read."""
    if not LEAST <= (found := utc(at)) < MOST:
        raise BadInput("time", found.isoformat(), "is outside the years 1678 to 2261", "send the time that is meant")
    return found


def micros(at: datetime) -> int:
    """Return microseconds since 1970, the one form in which databases keep times; exact, whatever the year."""
    return (utc(at) - EPOCH) // MICRO


def moment(value: int) -> datetime:
    """Return the time that `micros` made `value` of."""
    return EPOCH + value * MICRO


def duration(text: str) -> timedelta:
    """Return the duration of ``90s``, ``15m``, ``36h``, ``7d`` or ``2w``; it must be positive, and at most a thousand years."""
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    if match is None or int(match[1]) == 0:
        raise BadInput("duration", text, "is not a positive number with a unit", "write 90s, 15m, 36h, 7d or 2w")
    seconds = int(match[1][:20]) * UNITS[match[2]]
    if seconds > MOST_SECONDS:
        raise BadInput("duration", text[:40], "is over a thousand years", "write a shorter one")
    return timedelta(seconds=seconds)


def zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones, or longer than a file's name
        raise BadInput("time zone", name, "is not known", "use a name such as Europe/Berlin or UTC") from None


def fires(cron: str, after: datetime, timezone: str = "UTC") -> Iterator[datetime]:
    """Yield the times, in UTC, at which the five-field `cron` is due after `after`, read on the clocks of `timezone`."""
    from cronsim import CronSim, CronSimError

    try:
        simulation = CronSim(cron, after.astimezone(zone(timezone)))
    except CronSimError as error:
        raise BadInput("cron", cron, str(error), "write five fields: minute hour day month weekday") from None
    for due in simulation:
        if (found := due.astimezone(UTC)) > after:  # in the hour that comes twice cronsim looks back
            yield found


def next_due(schedule: str, after: datetime) -> datetime:
    """Return the first time after `after` of a schedule: a duration such as ``6h`` (its multiples since 1970) or five cron fields in UTC."""
    times = fires(schedule, after) if " " in schedule.strip() else ticks(duration(schedule), after)
    due = next(iter(times), None)
    if due is None:
        raise BadInput("schedule", schedule, "is never due", "write a duration such as 6h, or five cron fields")
    return due


def ticks(every: timedelta, after: datetime) -> Iterator[datetime]:
    """Yield the multiples of `every` since 1970 that come after `after`; no zone and no change of clocks moves them."""
    start = datetime(1970, 1, 1, tzinfo=UTC)
    number = (after - start) // every + 1
    while True:
        yield start + number * every
        number += 1
