"""The file of a project's monitors, `monitors.yaml` beside its cellwork.toml:

    monitors:
      - {name: delay-drift, kind: drift, endpoint: delay, window: 7d, every: 1h}
      - {name: delay-quality, kind: quality, endpoint: delay, window: 7d, drop: 0.05}
      - {name: delay-silence, kind: predictions, endpoint: delay, window: 2h, severity: critical}

An alert is an event: a schedule file with `on: event: {name: alert.raised, match: {monitor: delay-drift}}` starts its notebook.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.wire.drift import DriftRules
from cellwork.wire.monitors import Monitor

FILE = "monitors.yaml"


def read(path: Path) -> list[Monitor]:
    """Return the monitors in the file `path`.

    Raises
    ------
    NotFound
        There is no such file.
    BadInput
        It is not YAML, or a monitor has an unknown field or a wrong value.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise NotFound(
            "file of monitors", path, "is not there", "write one; see: cellwork monitor apply --help"
        ) from None
    except yaml.YAMLError as error:
        raise BadInput("file of monitors", path, f"is not YAML: {error}", "mend it") from None
    listed = content.get("monitors") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise BadInput("file of monitors", path, "has no list `monitors`", "begin it with: monitors:")
    return [_monitor(number, each, path) for number, each in enumerate(listed, start=1)]


def _monitor(number: int, values: Any, path: Path) -> Monitor:
    subject = f"monitor {number} of {path.name}"
    if not isinstance(values, dict):
        raise BadInput(subject, values, "is not a mapping", "write: - {name: …, kind: drift, endpoint: …}")
    _refuse_unknown(subject, values, Monitor)
    if isinstance(values.get("rules"), dict):
        _refuse_unknown(f"rules of {subject}", values["rules"], DriftRules)
    try:
        return msgspec.convert(values, Monitor)
    except msgspec.ValidationError as error:
        raise BadInput(subject, values.get("name", ""), f"is wrong: {error}", "mend it") from None


def _refuse_unknown(subject: str, values: dict[str, Any], kind: type) -> None:
    known = [field.name for field in msgspec.structs.fields(kind)]
    for name in values:
        if name not in known:
            raise BadInput(f"field of {subject}", name, "is not known", near_miss(str(name), known))
