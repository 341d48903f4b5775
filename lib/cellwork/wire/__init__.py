"""What the services say to each other and to clients: msgspec Structs, one module a subject. No logic."""

from __future__ import annotations

import msgspec

PREFIX = {name: f"/services/{name}" for name in ("cellwork", "jobs", "inference", "mlflow", "dashboards")}


class Struct(msgspec.Struct, kw_only=True, omit_defaults=False):
    """A record: keyword arguments only, unknown fields ignored, so that an older reader reads a newer writer."""


class Problem(Struct):
    """The body of every error answer (RFC 9457 problem+json)."""

    type: str
    subject: str
    value: str = ""
    verdict: str = ""
    way_out: str = ""
    request_id: str = ""


class Page(Struct):
    """What every list takes: at most `limit` rows, after the row `cursor` names."""

    limit: int = 100
    cursor: str = ""
