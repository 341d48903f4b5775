"""User servers in containers: `ContainerSpawner` is DockerSpawner with our menu, a queue, a story of the start, and errors that name the cause.

A start goes: a place in the queue (few at once: each takes a core for some seconds), the image (pulled if it is another's), the
container, the GPU where one was promised, and then the server's first answer. Only after that the place is free again.
Whatever stops a start is told to the user in one sentence, with the container's last lines if it had any; a container that
failed is removed. One that dies later stays until the next start, so that its reason can still be told.

Every container runs as uid 1000 without capabilities, cannot gain any, and has limits on memory (no swap), cores and processes.
It has one volume, the user's; the project tables are mounted read-only; nothing else of the machine is visible.
"""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

from docker.errors import APIError, DockerException
from dockerspawner import DockerSpawner
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import maybe_future
from requests import RequestException
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from traitlets import Float, Int, Unicode, default

from cellwork.errors import CellworkError, NotFound, Refused, TooBusy, Unavailable
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork.wire import PREFIX
from cellwork_hub import profiles
from cellwork_hub.config.orphans import remove_when_started
from cellwork_hub.config.sharing import become_dashboard
from cellwork_hub.config.team import lost
from cellwork_hub.containers import engine, images, way
from cellwork_hub.containers.reasons import away, explain, last_words
from cellwork_hub.profiles import Profile

WORK = "/home/jovyan/work"
TABLES = "/srv/cellwork"
AT_ONCE = 2
QUEUE_SECONDS = 600
LOOK_SECONDS = 15
"""How often the hub looks at most whether a server still runs, and still may."""
NO_NAMES = ["timeout:1", "attempts:1"]
"""In a closed network no name of the world outside is found, and that is said at once."""
NO_COMMAND = (126, 127)
AWAY = (DockerException, RequestException, ConnectionError, TimeoutError)
"""What a call of an engine raises that does not answer, or stops answering; its refusals (APIError) are among them."""
PROJECT = "project:"
"""How the hub's groups name a project's members."""
STATUS = {NotFound: 404, Refused: 403, Unavailable: 503, TooBusy: 503}


class ContainerSpawner(DockerSpawner):  # type: ignore[misc]
    home = Unicode(config=True, help="CELLWORK_HOME.")
    engine_address = Unicode(config=True, help="The container engine.")
    machine_cores = Float(0.0, config=True, help="Cores that the engine has; no server gets more.")
    ready_seconds = Int(60, config=True, help="How long a server may take to answer.")
    by_groups = Int(0, config=True, help="1: a profile's groups say who may use it; 0: everybody may.")

    environment: dict[str, str]
    object_id: str
    places: ClassVar[asyncio.Semaphore | None] = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps: list[tuple[int, str]] = []
        self.mounted: list[str] = []
        self.telling = False

    @default("name_template")  # type: ignore[untyped-decorator]
    def _own_name(self) -> str:
        """Escaped names hold no two dashes in a row, so no user's server has the name of another's."""
        return f"{way.prefix(Home(Path(self.home)))}-{{username}}" + ("--{servername}" if self.name else "")

    # the menu

    @property
    def menu(self) -> list[Profile]:
        return profiles.load(Home(Path(self.home)).profiles())

    @property
    def groups(self) -> set[str] | None:
        """The user's groups as profiles name them; None where groups don't count."""
        return {name.removeprefix("group:") for name in self._hub_groups} if self.by_groups else None

    @property
    def projects(self) -> set[str] | None:
        """The projects whose tables the user reads; None is all."""
        return {name.removeprefix(PROJECT) for name in self._hub_groups if name.startswith(PROJECT)} if self.by_groups else None  # fmt: skip

    @property
    def _hub_groups(self) -> list[str]:
        return [str(group.name) for group in self.user.groups]

    def _default_options_form(self) -> str:
        """A form with the profiles this user may have; none if there is no choice."""
        open_to = profiles.allowed(self.menu, self.groups)
        if len(open_to) < 2:
            return ""
        rows = "".join(_row(profile, checked=number == 0) for number, profile in enumerate(open_to))
        return f"<fieldset><legend>Your server</legend>{rows}</fieldset>"

    def options_from_form(self, form: dict[str, list[str]]) -> dict[str, str]:
        return {"profile": form.get("profile", [""])[0]}

    # the start

    async def start(self) -> tuple[str, int]:
        self.steps = []
        try:
            profile = profiles.choose(self.menu, str(self.user_options.get("profile", "")), self.groups)
            async with await self._place():
                return await self._start(profile)
        except CellworkError as error:
            raise _refusal(error) from None
        except APIError as error:
            raise _refusal(explain(error, profile, profile.image)) from None
        except AWAY as error:
            raise _refusal(away(self.engine_address, error)) from None

    async def _place(self) -> asyncio.Semaphore:
        """Return the queue; its turn comes when the `async with` on it is entered."""
        kind = type(self)
        if kind.places is None:
            kind.places = asyncio.Semaphore(AT_ONCE)
        if kind.places.locked():
            self.say(5, "Waiting for a place: other servers are starting")
        return kind.places

    async def _start(self, profile: Profile) -> tuple[str, int]:
        image = await self._image(profile)
        self._take(profile, image)
        self.say(30, f"Starting a container: {profile.text}")
        try:
            where = await self._create(profile)
            if profile.gpus:
                await self._see_gpu(profile)
            self.say(50, "The container runs; Python is importing JupyterLab and its extensions")
            await self._answered(where, profile)
        except APIError as error:
            await self._clear()
            raise explain(error, profile, image.tag) from None
        except BaseException:
            await self._clear()
            raise
        self.say(95, "The server answers")
        return where

    async def _image(self, profile: Profile) -> images.Image:
        """Return the profile's image; one that is another's is pulled, ours are built on this machine."""
        chosen = engine.Engine(self.engine_address, "", 0, 0, False)
        home = Home(Path(self.home))
        found = await asyncio.to_thread(images.look, chosen, home, profile.image)
        if found is None and profile.image not in profiles.OURS:
            self.say(10, f"Pulling the image {profile.image}")
            found = await asyncio.to_thread(images.pull, chosen, home, profile.image)
        if found is None:
            raise NotFound("image", profile.image, "is not built on this machine", f"an admin runs: cellwork image build {profile.image}")  # fmt: skip
        return found

    def _take(self, profile: Profile, image: images.Image) -> None:
        """Set what a server of `profile` gets. The image is named by digest: what a run later asks for is this one."""
        self.image = image.digest
        self.mem_limit = profile.memory_bytes
        self.cpu_limit = min(profile.cores, self.machine_cores) if self.machine_cores else profile.cores
        self.extra_host_config = {
            **engine.HARDENED,
            "memswap_limit": profile.memory_bytes,
            "device_requests": _gpus(profile),
            "dns_opt": NO_NAMES if self.use_internal_ip else [],
        }
        self.mounted = sorted(self.projects or ())
        self.read_only_volumes = tables(Home(Path(self.home)), self.projects)
        self.environment = {**self.environment, "CELLWORK_IMAGE_DIGEST": image.digest, "CELLWORK_ENV": image.env, "CELLWORK_PROFILE": profile.name}  # fmt: skip

    async def _create(self, profile: Profile) -> tuple[str, int]:
        """Start the container; a name that is still being given back by the engine is asked for once more."""
        try:
            where: tuple[str, int] = await super().start()
        except APIError as error:
            if error.status_code != 409:
                raise
            await asyncio.sleep(1)
            where = await super().start()
        except RuntimeError:  # it has no port, because it has ended already
            raise await self._ended(profile) from None
        if not where[0]:  # nor an address
            raise await self._ended(profile)
        return where

    async def _see_gpu(self, profile: Profile) -> None:
        made = await self.docker("exec_create", self.container_id, ["python", "-m", "cellwork_jupyter.gpu"])
        said = await self.docker("exec_start", made["Id"])
        if (await self.docker("exec_inspect", made["Id"]))["ExitCode"]:
            text = said.decode(errors="replace").strip()
            raise Unavailable("profile", profile.name, f"promises {profile.gpus} GPU, and the container sees {text}", "choose another profile, or ask an admin to look at: cellwork doctor")  # fmt: skip

    async def _answered(self, where: tuple[str, int], profile: Profile) -> None:
        """Wait until the server answers; raise with its last words if it ends first, or never does."""
        client, url = (
            AsyncHTTPClient(),
            f"http://{where[0]}:{where[1]}{self.server.base_url if self.server else '/'}api",
        )
        end = time.monotonic() + self.ready_seconds
        while time.monotonic() < end:
            try:
                await client.fetch(url, request_timeout=2, follow_redirects=False)
                return
            except HTTPClientError as error:
                if error.code != 599:
                    return
            except OSError:
                pass
            if await self.poll() is not None:
                raise await self._ended(profile)
            await asyncio.sleep(0.1)
        words = await self.docker("logs", self.container_id, tail=20)
        raise Unavailable("server", "", f"did not answer in {self.ready_seconds} s; its last words: {last_words(words)}", "try again, or another profile")  # fmt: skip

    async def _ended(self, profile: Profile) -> CellworkError:
        container = await self.docker("inspect_container", self.container_id)
        words = last_words(await self.docker("logs", self.container_id, tail=20))
        if container["State"]["OOMKilled"]:
            return Unavailable("server", "", f"needed more than the {profile.memory} of profile {profile.name!r} to start", "choose a larger profile")  # fmt: skip
        code = container["State"]["ExitCode"]
        if code in NO_COMMAND:
            return Unavailable("image", profile.image, "is broken: it has no command cellwork-server", "an admin builds it again, FROM cellwork/base")  # fmt: skip
        return Unavailable("server", "", f"ended while it was starting (exit code {code}): {words}", "the image may be broken: cellwork image verify")  # fmt: skip

    async def _clear(self) -> None:
        """Remove a container that did not become a server."""
        if self.object_id:
            try:
                await self.docker("remove_container", self.object_id, force=True)
            except AWAY as error:
                self.log.warning("container %s stays: %s", self.object_id, error)
            self.object_id = ""

    # its life

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "mounted": self.mounted}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.mounted = state.get("mounted", [])

    def run_post_stop_hook(self) -> Any:
        """The hub asks for this once it has stopped the server: who waited for its end does not wait for the next one's."""
        self._callbacks: list[Callable[[], Any]] = []
        return super().run_post_stop_hook()

    async def poll_and_notify(self) -> Any:
        """Look whether the server runs, as the hub does from time to time; one whose owner lost what it was started with is stopped.

        A look may take seconds, behind others at the engine. What it finds of a server that was stopped meanwhile is told to nobody:
        the hub would end the one that is being started in its place. A server that ended while nobody waited for it, or whose end
        could not be told, is ended here: the hub would believe for ever that it runs.
        """
        if why := await lost(self.authenticator, self.user.name, self.mounted):
            self.log.warning("server %s of %s is stopped: %s", self.name, self.user.name, why)
            await self.stop(now=True)
        waiting = self._callbacks
        status = await self.poll()
        if status is None or self._stop_pending or self.telling or self._callbacks is not waiting:
            return status
        self.stop_polling()
        self._callbacks, self.telling = [], True
        try:
            await self._tell(waiting)
        finally:
            self.telling = False
        return status

    async def _tell(self, waiting: list[Callable[[], Any]]) -> None:
        for told in waiting:
            try:
                await maybe_future(told())
            except Exception:
                self.log.exception("the end of server %s of %s could not be told", self.name, self.user.name)
        if self.ready:
            await self.user.stop(self.name)

    # the story

    def say(self, percent: int, text: str) -> None:
        self.steps.append((percent, text))

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each step as it begins; the hub adds how it ended."""
        told = 0
        while True:
            for percent, text in self.steps[told:]:
                yield {"progress": percent, "message": text}
            told = len(self.steps)
            await asyncio.sleep(0.1)


def _row(profile: Profile, *, checked: bool) -> str:
    text = html.escape(f"{profile.text}. {profile.description}")
    name, title = html.escape(profile.name, quote=True), html.escape(profile.title)
    mark = " checked" if checked else ""
    return (
        f'<div class="radio"><label><input type="radio" name="profile" value="{name}"{mark}> <b>{title}</b> {text}</label></div>'
    )  # fmt: skip


def _gpus(profile: Profile) -> list[dict[str, Any]]:
    return [{"count": profile.gpus, "capabilities": [["gpu"]]}] if profile.gpus else []


def _refusal(error: CellworkError) -> SpawnException:
    """Return the hub's form of an error: shown to the user, no traceback in the log."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
    text = str(error)
    return SpawnException(text[:1].upper() + text[1:], reason=type(error).__name__.lower(), status_code=status)


def set_containers(c: Any, settings: Settings, ports: dict[str, int], chosen: way.Way) -> None:
    """Configure the hub for servers in containers, as `chosen` at the start of the platform."""
    home = settings.folder
    url = f"http://{chosen.door}:{ports['public']}"
    c.JupyterHub.spawner_class = ContainerSpawner
    c.Spawner.cmd = ["cellwork-server"]
    c.Spawner.args = []
    c.Spawner.default_url = "/lab"
    c.Spawner.hub_connect_url = url
    c.Spawner.start_timeout = settings.server_ready_seconds + QUEUE_SECONDS
    c.Spawner.http_timeout = 30
    c.Spawner.environment = environment(url, f"http://{settings.host}:{ports['public']}")
    c.Spawner.poll_interval = min(LOOK_SECONDS, settings.token_cache_seconds)
    c.Spawner.pre_spawn_hook = hand_over_token
    c.Spawner.apply_user_options = options_are_read_at_the_start
    c.DockerSpawner.client_kwargs = {"base_url": chosen.engine}
    c.DockerSpawner.network_name = chosen.network
    c.DockerSpawner.use_internal_ip = chosen.closed
    c.DockerSpawner.host_ip = "127.0.0.1"
    c.DockerSpawner.remove = True
    c.DockerSpawner.pull_policy = "skip"  # the image is there when the container is made
    c.DockerSpawner.volumes = {f"{way.prefix(home)}-{{username}}": WORK}
    c.DockerSpawner.extra_create_kwargs = {"user": "1000:1000", "labels": {engine.OWNER: way.label(home)}}
    c.ContainerSpawner.home = str(home.root.absolute())
    c.ContainerSpawner.engine_address = chosen.engine
    c.ContainerSpawner.machine_cores = chosen.cores
    c.ContainerSpawner.ready_seconds = settings.server_ready_seconds
    c.ContainerSpawner.by_groups = int(settings.trust == "team")
    remove_when_started(home, chosen)


def environment(url: str, public_url: str) -> dict[str, str]:
    """Return what every server sees; the token comes with each start."""
    return {
        "CELLWORK_URL": url,
        "CELLWORK_PUBLIC_URL": public_url,
        "CELLWORK_TABLES": TABLES,
        "MLFLOW_TRACKING_URI": url + PREFIX["mlflow"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def hand_over_token(spawner: Any) -> None:
    become_dashboard(spawner, "python")
    token = spawner.api_token
    spawner.environment = {
        **spawner.environment,
        "CELLWORK_TOKEN": token,
        "MLFLOW_TRACKING_TOKEN": token,
        "CELLWORK_USER": spawner.user.name,
    }


def options_are_read_at_the_start(spawner: Any, options: dict[str, Any]) -> None:
    """Nothing to do here: the profile is looked up when its place in the queue comes."""


def tables(home: Home, projects: set[str] | None) -> dict[str, str]:
    """Return the read-only mounts: raw batches and features, of `projects` or all. What is sealed or secret lies elsewhere."""
    found = {}
    for kind in ("raw", "features"):
        for part in [""] if projects is None else sorted(projects):
            folder = home.root.absolute() / "data" / kind / part
            folder.mkdir(parents=True, exist_ok=True)
            found[str(folder)] = f"{TABLES}/{kind}/{part}".rstrip("/")
    return found
