"""Write the reference pages from the code. `make docs` runs this; a test compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from cellwork import scopes, settings
from cellwork.cli import main
from cellwork_hub import records
from cellwork_hub.edge import Route, Service
from cellwork_hub.inference import app as inference
from cellwork_hub.jobs import app as jobs
from cellwork_hub.platform import app as platform
from cellwork_hub.platform.state import State

HERE = Path(__file__).resolve().parent


def settings_page() -> str:
    default = settings.Settings()
    lines = [
        "# Settings",
        "",
        "Default, then `[platform]` in `CELLWORK_HOME/config.toml` and `cellwork.toml`, then the variable. `cellwork config` prints what holds now.",
        "",
    ]
    lines += ["| setting | variable | default | what it is |", "| --- | --- | --- | --- |"]
    for name, variable, text in settings.documentation():
        value = "the user's data folder" if name == "home" else getattr(default, name)
        lines.append(f"| `{name}` | `{variable}` | {'' if value in (None, '') else f'`{value}`'} | {text} |")
    return "\n".join([*lines, ""])


def commands() -> list[tuple[str, click.Command]]:
    """Return (path, command) of every command that does something by itself."""

    def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    yield from walk(f"{path} {name}", child)
        else:
            yield path, command

    return list(walk("cellwork", main))


def commands_page() -> str:
    lines = ["# Commands", "", "Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by a gate or check, 4 unavailable.", ""]
    for path, command in commands():
        context = click.Context(
            command, info_name=path, terminal_width=110, help_option_names=main.context_settings["help_option_names"]
        )
        lines += [f"## {path}", "", "```", command.get_help(context), "```", ""]
    return "\n".join(lines)


def services() -> dict[str, list[Route]]:
    nothing: Any = None
    state = State(nothing, nothing, nothing)
    routes = {
        "cellwork": [r for router in platform.ROUTERS for r in router.routes(state)],
        "jobs": jobs.routes(nothing),
        "inference": inference.routes(nothing, nothing),
    }
    return {
        name: Service(name, [*records.routes(nothing), *rows], authorise=nothing).routes
        for name, rows in routes.items()
    }


def routes_page() -> str:
    lines = [
        "# Routes",
        "",
        "Each below `/services/<service>`. Send `Authorization: Bearer <token>`; the scope is what the token must have. `/openapi.json` of each service describes bodies and answers.",
        "",
    ]
    for name, rows in services().items():
        lines += [f"## {name}", "", "| method | path | scope | what it does |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {r.method} | `{r.path}` | {r.scope or 'open'} | {r.doc} |"
            for r in sorted(rows, key=lambda r: (r.path, r.method))
        ]
        lines.append("")
    return "\n".join(lines)


def roles_page() -> str:
    lines = [
        "# Roles and scopes",
        "",
        "A role is a set of scopes. JupyterHub carries a scope as `" + scopes.HUB_PREFIX + "<scope>`.",
        "",
    ]
    lines += ["| scope | " + " | ".join(scopes.ROLES) + " |", "| --- |" + " --- |" * len(scopes.ROLES)]
    lines += [
        f"| `{scope}` | " + " | ".join("yes" if scope in granted else "" for granted in scopes.ROLES.values()) + " |"
        for scope in sorted(scopes.ALL)
    ]
    return "\n".join([*lines, ""])


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "routes.md": routes_page,
    "roles.md": roles_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
