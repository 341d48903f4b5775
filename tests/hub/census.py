"""Every route of every program behind the public address, asked of the programs themselves, built as they run.

A new route belongs into routes_census.tsv, with who may; the test prints the rows that are missing there.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("routes_census.tsv")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
Row = tuple[str, str, str]
"""Program, method, path."""


def table() -> dict[Row, str]:
    """Return who may ask what, from the file."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    found = {(program, method, path): who for program, method, path, who in rows}
    assert len(found) == len(rows), "a route stands twice in the table"
    return found


def services() -> dict[Row, str]:
    """Return the routes of our own services, each with the scope it needs and whether it is within a project."""
    page: dict[str, Any] = runpy.run_path(str(ROOT / "nbs" / "reference" / "build.py"))
    return {
        (name, route.method, route.path): f"{route.scope} {route.within}" if route.scope else "open"
        for name, routes in page["services"]().items()
        for route in routes
    }


def asked(environ: dict[str, str]) -> dict[str, list[Row]]:
    """Return the routes of the hub, of MLflow and of Voila, each from a process that builds it with its own configuration."""
    with ExitStack() as stack:
        started = {
            program: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, program],
                    env=os.environ | environ,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd="/",
                )
            )
            for program in PROGRAMS
        }
        found = {}
        for program, process in started.items():
            text, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
            found[program] = [(program, method, path) for method, path in json.loads(text.splitlines()[-1])]
    return found


def _handled(handlers: list[Any]) -> list[tuple[str, str]]:
    """Return (method, pattern) of tornado handlers: the methods that a class answers."""
    from tornado.web import RequestHandler
    from tornado.websocket import WebSocketHandler

    found = []
    for rule in handlers:
        pattern, target = (rule[0], rule[1]) if isinstance(rule, tuple) else (rule.matcher.regex.pattern, rule.target)
        if issubclass(target, WebSocketHandler):
            found.append(("WEBSOCKET", pattern))
            continue
        for method in METHODS:
            if getattr(target, method.lower()) is not getattr(RequestHandler, method.lower()):
                found.append((method, pattern))
    return found


def _hub() -> list[tuple[str, str]]:
    from jupyterhub.app import JupyterHub

    from cellwork_hub.units import hub_config

    app = JupyterHub(log_level=40)
    app.load_config_file(str(hub_config()))
    app.authenticator = app.authenticator_class(parent=app)
    app.init_handlers()
    return _handled(app.handlers)


def _routed(route: Any) -> list[tuple[str, str]]:
    """Return (method, path) of a Starlette route, or of all that FastAPI's included router stands for."""
    from starlette.routing import Mount, WebSocketRoute

    if hasattr(route, "effective_candidates"):
        return [row for inner in route.effective_candidates() for row in _routed(inner)]
    if isinstance(route, WebSocketRoute):
        return [("WEBSOCKET", route.path)]
    return [] if isinstance(route, Mount) else [(method, route.path) for method in route.methods or ()]


def _mlflow() -> list[tuple[str, str]]:
    from cellwork_hub.context import Context
    from cellwork_hub.tracking import mlflow_app

    context = Context.load()
    app: Any = mlflow_app(context.home, context.database_url("mlflow"))
    from mlflow.server import app as flask

    found = [row for route in app.routes for row in _routed(route)]
    for rule in flask.url_map.iter_rules():
        found += [(method, rule.rule) for method in rule.methods or ()]
    return [(method, path) for method, path in found if method not in ("HEAD", "OPTIONS")]


def _dashboards() -> list[tuple[str, str]]:
    from voila.app import Voila

    from cellwork import assets
    from cellwork_hub.voila import OwnVoila, configuration

    class Listed(OwnVoila):
        def listen(self) -> None:
            return None

    app: Any = Listed(config=configuration(0))
    Voila.start = lambda self: None
    app.initialize([str(assets.folder("nbs") / "dashboards")])
    app.init_settings()
    return _handled(app.init_handlers())


PROGRAMS = {"hub": _hub, "mlflow": _mlflow, "dashboards": _dashboards}

if __name__ == "__main__":
    print(json.dumps(sorted(set(PROGRAMS[sys.argv[1]]()))))
