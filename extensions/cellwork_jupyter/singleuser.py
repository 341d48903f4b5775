"""The user's server: JupyterHub's single-user server with Lab, without what its imports do that no user's server needs.

While it is imported, some modules are absent, or empty: what its schemas of events never name (a grammar of IRIs, compiled in 2.1 s; durations), what
migrates the hub's database, and a command line of httpx. Lab does not ask yarn for its configuration (0.6 s where there is a Node.js), which only a build
of Lab reads. Imports make many objects and no garbage, so it is looked for less often. Run with ``-P``: the folder a server starts in is its user's, and no
file there may take the name of a module.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

OBJECTS = 50_000
ABSENT = ("rfc3987_syntax", "isoduration", "httpx._main")
"""Each is left out by whoever imports it, as if it were not installed."""
EMPTY = {"alembic": (), "alembic.command": (), "alembic.config": (), "alembic.script": ("ScriptDirectory",)}


def main() -> None:
    gc.set_threshold(OBJECTS)
    with without():
        from jupyterlab import commands

        commands._yarn_config = _no_builds
        import_module("jupyterlab.labapp")  # asks yarn
        from jupyterhub.singleuser import main as serve
    serve()


@contextmanager
def without() -> Iterator[None]:
    """Modules of `ABSENT` are not there meanwhile, those of `EMPTY` have nothing in them; later imports find them as they are."""
    modules: dict[str, Any] = {name: None for name in ABSENT if name not in sys.modules}
    for name, words in EMPTY.items():
        if name not in sys.modules:
            modules[name] = ModuleType(name)
            modules[name].__dict__.update({"__path__": [], **dict.fromkeys(words)})
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, stand_in in modules.items():
            if sys.modules.get(name, modules) is stand_in:
                del sys.modules[name]


def _no_builds(logger: Any) -> dict[str, dict[str, Any]]:
    return {"yarn config": {}, "npm config": {}}


if __name__ == "__main__":
    main()
