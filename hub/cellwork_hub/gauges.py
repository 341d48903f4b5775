"""What the metrics of a service say beside its requests: a name, labels and a number, read when somebody asks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil

Gauge = tuple[str, Mapping[str, str], float]
Gauges = Callable[[], Iterable[Gauge]]


def process() -> list[Gauge]:
    """Return the memory of this process and of the children it has started."""
    here = psutil.Process()
    children = sum(_resident(child) for child in here.children(recursive=True))
    return [
        ("cellwork_resident_bytes", {"of": "service"}, _resident(here)),
        ("cellwork_resident_bytes", {"of": "children"}, children),
    ]


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def machine(folder: Path) -> list[Gauge]:
    """Return what is free of the disk under `folder`, and of the memory."""
    disk, memory = shutil.disk_usage(folder), psutil.virtual_memory()
    return [
        ("cellwork_disk_bytes", {"state": "free"}, disk.free),
        ("cellwork_disk_bytes", {"state": "used"}, disk.used),
        ("cellwork_memory_bytes", {"state": "free"}, memory.available),
        ("cellwork_memory_bytes", {"state": "used"}, memory.total - memory.available),
    ]


def lines(service: str, gauges: Iterable[Gauge]) -> list[str]:
    """Return gauges in the format that Prometheus reads (text, version 0.0.4)."""
    said: list[str] = []
    for name, labels, value in sorted(gauges, key=lambda gauge: gauge[0]):
        if f"# TYPE {name} gauge" not in said:
            said.append(f"# TYPE {name} gauge")
        named = ",".join(f'{key}="{text}"' for key, text in {"service": service, **labels}.items())
        said.append(f"{name}{{{named}}} {value:g}")
    return said
