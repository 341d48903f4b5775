"""Every setting of the platform: one class, default < cellwork.toml (or CELLWORK_HOME/config.toml) < CELLWORK_* variables (an empty one counts as not set)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import platformdirs

from cellwork import files
from cellwork.errors import BadInput, near_miss
from cellwork.home import Home

Trust = Literal["personal", "team"]
ServerNetwork = Literal["auto", "closed", "open"]


def _setting(default: Any, text: str) -> Any:
    if callable(default):
        return field(default_factory=default, metadata={"doc": text})
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, kw_only=True)
class Settings:
    home: Path = _setting(
        lambda: Path(platformdirs.user_data_dir("cellwork")), "The platform's folder; all its state lies there."
    )
    trust: Trust = _setting(
        "personal",
        "`personal`: one user, one account, no secrecy promised. `team`: users can't read the platform's home.",
    )
    login: str = _setting(
        "password",
        "How people log in in `team` trust: `password` (their own), `oidc`, or the path of a JupyterHub authenticator.",
    )
    oidc_issuer: str = _setting(
        "", "The OpenID Connect provider's address; its secret is in secrets/oidc-client-secret."
    )
    oidc_client_id: str = _setting("", "What the provider calls this platform.")
    oidc_name_claim: str = _setting("preferred_username", "The claim a new user's name is taken from.")
    oidc_groups_claim: str = _setting("groups", "The claim with the provider's groups; those known here count.")
    oidc_scopes: str = _setting("openid profile email", "What is asked of the provider.")
    oidc_title: str = _setting("your organisation", "What the login button says after 'Sign in with'.")
    host: str = _setting("127.0.0.1", "The address the platform listens on.")
    port: int = _setting(8000, "The one public port; 0 takes a free one.")
    user: str = _setting("", "The name of the one user in `personal` trust; empty takes the account's name.")
    workspace: Path | None = _setting(None, "The folder Lab opens; default: `work` under home.")
    container_engine: str = _setting(
        "",
        "The address of a Docker or Podman engine for user servers; empty takes the first that answers, `none` local processes.",
    )
    server_network: ServerNetwork = _setting(
        "auto",
        "What user servers and runs in containers reach: `closed` the platform alone, `open` all that this machine reaches; `auto` is closed in `team` trust.",
    )
    ready_seconds: int = _setting(90, "How long a service may take to become ready.")
    server_ready_seconds: int = _setting(60, "How long a user's server in a container may take to answer.")
    runners: int = _setting(2, "How many notebook runs execute at once.")
    warm_imports: str = _setting(
        "",
        "Modules, by comma, that kernels of runs are forked with (`numpy,pandas,sklearn.ensemble`); empty starts each kernel fresh.",
    )
    run_timeout_seconds: int = _setting(3600, "When a notebook run is stopped, unless its job says otherwise.")
    mail_server: str = _setting("", "host:port of the mail server that tells of ended runs; empty sends no mail.")
    mail_from: str = _setting("cellwork@localhost", "The sender of such mails.")
    keep_kernel_seconds: int = _setting(
        3600, "How long the kernel of a failed run is kept for its owner to go on in; 0 keeps none."
    )
    keep_kernel_megabytes: int = _setting(4096, "A kept kernel that holds more memory is ended.")
    keep_kernels: int = _setting(4, "How many kernels of failed runs are kept at once.")
    inference_workers: int = _setting(1, "Processes of the inference service; 0 is one a core.")
    grpc_port: int = _setting(0, "The port of the endpoints' Open Inference protocol over gRPC; 0 is none.")
    webhook_hosts: str = _setting(
        "", "Hosts, by comma, that answers of asynchronous predictions may be pushed to; `host` or `host:port`."
    )
    log_days: int = _setting(
        7,
        "How many whole days of predictions stay in the database; older ones are moved into Parquet under home and are read alike.",
    )
    drain_seconds: int = _setting(
        1,
        "How long the inference service, told to end, still takes requests while it says that it is not ready; as long as a load balancer needs to notice.",
    )
    caller_requests_per_second: int = _setting(
        0, "The most predictions a second for one credential and inference process; 0 is no limit."
    )
    predictor_megabytes: int = _setting(
        4096, "Address space of a child process that computes a model; one that wants more fails alone."
    )
    dashboard_kernels: int = _setting(1, "Kernels kept warm for each dashboard.")
    culling_idle_seconds: int = _setting(
        0,
        "When an idle user server is stopped, a published dashboard's too, which starts again when somebody looks; 0 never.",
    )
    named_servers: int = _setting(
        20,
        "How many servers one user may have beside the own Lab; each published dashboard is one, also while it is stopped. 0 is no limit.",
    )
    token_cache_seconds: int = _setting(30, "How long a service trusts the hub's answer about a token.")
    request_bytes: int = _setting(256 * 1024 * 1024, "The largest request body a service takes.")
    online_url: str = _setting(
        "", "Redis for the online values of features, `redis://host:port/db`; empty is SQLite under home."
    )
    join_scheduler: str = _setting(
        "", "Dask scheduler on whose workers features are joined, `tcp://host:8786`; empty is the platform's process."
    )
    raw_url: str = _setting(
        "", "Where raw batches lie: an object store, `s3://bucket/folder` (also gs, az); empty is a folder under home."
    )
    raw_credentials: str = _setting(
        "",
        "Name of a file in secrets/ with what opens raw_url, a JSON object (`aws_access_key_id` …); empty takes the environment's.",
    )
    database_url: str = _setting(
        "", "PostgreSQL for the services, `{service}` in it names each; empty is SQLite under home."
    )

    @property
    def folder(self) -> Home:
        return Home(self.home)


@dataclass(frozen=True)
class Origin:
    """Where the value of one setting came from: `default`, a file, or an environment variable."""

    value: Any
    source: str


def load(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> tuple[Settings, dict[str, Origin]]:
    """Return the settings that hold now and where each came from.

    Raises
    ------
    BadInput
        An unknown name or a value of the wrong type, with the file or variable it stands in.
    """
    environ = os.environ if environ is None else environ
    origins = {f.name: Origin(None, "default") for f in fields(Settings)}
    values: dict[str, Any] = {}
    variables = {f"CELLWORK_{name.upper()}": name for name in origins}
    home = Path(environ.get("CELLWORK_HOME") or Settings().home)
    for file in (home / "config.toml", (folder or Path.cwd()) / "cellwork.toml"):
        for key, value in _section(file).items():
            if key not in origins:
                raise BadInput(f"setting in {file}", key, "is unknown", near_miss(key, origins))
            values[key], origins[key] = _typed(key, value, str(file)), Origin(value, str(file))
    for variable, key in variables.items():
        if environ.get(variable):
            values[key], origins[key] = _typed(key, environ[variable], variable), Origin(environ[variable], variable)
    settings = Settings(**values)
    return settings, {key: Origin(getattr(settings, key), origin.source) for key, origin in origins.items()}


def _section(file: Path) -> dict[str, Any]:
    """Return the table `[platform]` of a TOML file; a project's other tables are not settings."""
    if not file.is_file():
        return {}
    try:
        section = tomllib.loads(file.read_text()).get("platform", {})
    except tomllib.TOMLDecodeError as error:
        raise BadInput("settings file", file, f"is not TOML: {error}", "mend it or remove it") from None
    return dict(section)


def _typed(key: str, value: Any, source: str) -> Any:
    hint = get_type_hints(Settings)[key]
    try:
        if hint is int:
            if isinstance(value, bool):
                raise ValueError
            return int(value)
        if hint in (Path, Path | None):
            return Path(str(value)).expanduser().absolute()
    except ValueError:
        raise BadInput(f"setting {key} ({source})", value, "is not a whole number", "write digits only") from None
    choices = get_args(hint)
    if choices and value not in choices:
        raise BadInput(f"setting {key} ({source})", value, "is not a choice", f"use one of {', '.join(choices)}")
    return str(value)


def documentation() -> list[tuple[str, str, str]]:
    """Return (name, variable, text) of every setting, for `cellwork config` and the docs' test."""
    return [(f.name, f"CELLWORK_{f.name.upper()}", f.metadata["doc"]) for f in fields(Settings)]


def save(home: Home, values: Mapping[str, str | int]) -> None:
    """Write `values` into CELLWORK_HOME/config.toml, keeping what stands there."""
    path = home.root / "config.toml"
    merged = {**_section(path), **values}
    lines = [
        f"{key} = {value if isinstance(value, int) else _quoted(str(value))}" for key, value in sorted(merged.items())
    ]
    files.write(path, "\n".join(["[platform]", *lines, ""]), mode=0o600)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
