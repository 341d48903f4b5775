"""`team` trust on a real engine, seen from inside a user's container: what it may do, see and reach, and that there is no more.

What is allowed stands in the tables below; whatever else is found fails. Each census first shows that it would find something.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from crew_world import Crew, project_of
from running import close_code, wait_for
from team_world import Person
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from cellwork.home import Home
from cellwork.wire.jobs import RunRequest
from cellwork_hub.containers import way

pytestmark = pytest.mark.timeout(3600)  # the first build of the image on a machine installs everything

EVERY_ADDRESS = ("0.0.0.0", "::")
METADATA, PUBLIC = "169.254.169.254", "198.51.100.1"
DEVICES = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}  # fmt: skip
OF_THE_ENGINE = {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/usr/sbin/docker-init", "/sbin/docker-init"}
KINDS_OF_THE_KERNEL = {"overlay", "proc", "tmpfs", "devpts", "sysfs", "cgroup", "cgroup2", "mqueue"}
NOTEBOOK = '{"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}, "nbformat": 4, "nbformat_minor": 5}'


@pytest.fixture(scope="module")
def status(crew: Crew) -> dict[str, str]:
    """What the system says of a process of anna's kernel."""
    told = crew.run("anna", "print(open('/proc/self/status').read())")
    return dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)


def test_a_process_is_uid_1000_without_a_capability_and_can_gain_none(status: dict[str, str]) -> None:
    assert (status["Uid"].split(), status["Gid"].split()) == (["1000"] * 4, ["1000"] * 4)
    assert status["Groups"].split() in ([], ["1000"])
    assert {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


FORBIDDEN = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *words):
    if getattr(libc, name)(*words) == 0:
        return "done"
    return os.strerror(ctypes.get_errno())
def attempt(function, *words):
    try:
        function(*words)
        return "done"
    except OSError as error:
        return error.strerror
print({
    "namespace": call("unshare", 0x10000000),
    "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "root": attempt(os.setuid, 0),
    "device": attempt(os.mknod, "/tmp/disk", 0o060600, os.makedev(254, 0)),
    "raw socket": attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "clock": call("clock_settime", 0, ctypes.create_string_buffer(16)),
    "host name": call("sethostname", b"mine", 4),
    "system": attempt(open, "/proc/sys/kernel/core_pattern", "w"),
    "keys": call("syscall", 250, 0, -3, 1),
})
"""


def test_what_leads_out_of_a_container_is_refused_by_the_kernel(crew: Crew) -> None:
    said = eval(crew.run("anna", FORBIDDEN))
    allowed = {"Operation not permitted", "Permission denied", "Read-only file system", "Function not implemented"}
    assert {name: answer for name, answer in said.items() if answer not in allowed} == {}


def test_su_and_the_other_programs_of_root_give_nobody_anything(crew: Crew) -> None:
    code = """
import subprocess
found = subprocess.run("find / -xdev -perm /6000 -type f 2>/dev/null", shell=True, capture_output=True, text=True).stdout.split()
print("/usr/bin/su" in found)
print(subprocess.run(["setpriv", "--reuid", "0", "id", "-u"], capture_output=True, text=True).returncode)
print(subprocess.run(["su", "-c", "id -u"], input="", capture_output=True, text=True).stdout.strip() == "0")
"""
    there, code_of_setpriv, root = crew.run("anna", code).split()
    assert there == "True", "what could give rights away is there, and the flag no-new-privileges makes it harmless"
    assert int(code_of_setpriv) != 0
    assert root == "False"


def test_what_is_mounted_is_the_users_volume_and_the_tables_of_their_projects_and_nothing_else(crew: Crew) -> None:
    code = """
for line in open("/proc/self/mountinfo"):
    left, right = line.split(" - ")
    print(left.split()[4], right.split()[0], left.split()[5].split(",")[0], left.split()[3])
"""
    rows = [line.split() for line in crew.run("anna", code).splitlines() if line]
    of_the_machine = {where: mode for where, kind, mode, _ in rows if kind not in KINDS_OF_THE_KERNEL}
    tables = f"/srv/cellwork/{{}}/{project_of('anna')}"
    assert {where: mode for where, mode in of_the_machine.items() if where not in OF_THE_ENGINE} == {
        "/home/jovyan/work": "rw", tables.format("raw"): "ro", tables.format("features"): "ro",
    }  # fmt: skip
    assert not [row for row in rows if row[0] == "/home/jovyan/work" and "anna" not in row[3]]


def test_devices_sockets_and_processes_are_the_containers_own(crew: Crew) -> None:
    code = """
import os
print(sorted(os.listdir("/dev")))
print([line.split()[-1] for line in open("/proc/net/unix") if line.rstrip().endswith(".sock")])
print([path for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock") if os.path.exists(path)])
def owners():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            yield os.stat(f"/proc/{pid}").st_uid
        except FileNotFoundError:  # it has ended meanwhile
            pass
print(sorted(set(owners())), sum(pid.isdigit() for pid in os.listdir("/proc")) < 50)
"""
    devices, unix, engines, processes = crew.run("anna", code).splitlines()
    assert set(eval(devices)) <= DEVICES
    assert (eval(unix), eval(engines)) == ([], [])
    assert processes == "[1000] True"


def test_processes_are_limited_and_a_server_survives_who_asks_for_too_many(crew: Crew) -> None:
    code = """
import os, time
read, write = os.pipe()
children = []
try:
    while len(children) < 3000:
        pid = os.fork()
        if pid == 0:
            os.close(write); os.read(read, 1); os._exit(0)
        children.append(pid)
except BlockingIOError as error:
    print(error.strerror)
os.close(write)
for pid in children:
    os.waitpid(pid, 0)
print(len(children) <= 1024)
"""
    said = crew.run("bert", f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-S', '-c', {code!r}], capture_output=True, text=True).stdout)", timeout=120)  # fmt: skip
    assert said.split("\n")[:2] == ["Resource temporarily unavailable", "True"]
    assert crew.run("bert", "6 * 7") == "42"


# what can be read

HOME = """
import os, json
found = {"home": os.path.exists(%(home)r), "rows": [], "names": [], "denied": 0}
for folder, _, names in os.walk("/"):
    if folder.startswith(("/proc", "/sys", "/opt/venv")):
        continue
    for name in names:
        path = os.path.join(folder, name)
        if name in %(names)r:
            found["names"].append(path)
        if name == "row.txt" or name.startswith("canary"):
            found["rows"].append(open(path).read())
found["environ"] = ""
for pid in filter(str.isdigit, os.listdir("/proc")):
    for about in ("environ", "cmdline"):
        try:
            found["environ"] += open(f"/proc/{pid}/{about}", errors="replace").read()
        except OSError:  # it may not be read, or has ended meanwhile
            pass
print(json.dumps(found))
"""


def test_the_platforms_home_its_secrets_and_others_files_are_not_there(crew: Crew) -> None:
    crew.run("bert", "open('/home/jovyan/work/canary', 'w').write('mine, bert')")
    crew.run("anna", "open('/home/jovyan/work/canary', 'w').write('mine, anna')")
    secrets = {path.name: path.read_text().strip() for path in (crew.home / "secrets").iterdir() if path.is_file()}
    assert len(secrets) >= 8, "there are secrets to look for"
    names = [
        *(name for name in secrets if "-" in name),
        "ports.json",
        "pids.json",
        "hub.sqlite",
        "platform.sqlite",
        "rules.toml",
    ]
    found = json.loads(crew.run("anna", HOME % {"home": str(crew.home), "names": names}, timeout=120))
    assert found["home"] is False
    assert sorted(found["rows"]) == ["a row of anna", "mine, anna"]
    assert found["names"] == []
    assert "JUPYTERHUB_API_TOKEN=" in found["environ"], "the search sees the processes' variables"
    assert [name for name, value in secrets.items() if value and value in found["environ"]] == []
    assert str(crew.home) not in found["environ"]


def test_a_table_can_be_read_and_not_written(crew: Crew) -> None:
    path = f"/srv/cellwork/raw/{project_of('anna')}/row.txt"
    assert crew.run("anna", f"print(open({path!r}).read())").strip() == "a row of anna"
    code = f"try:\n    open({path!r}, 'w')\nexcept OSError as error:\n    print(error.strerror)"
    assert crew.run("anna", code).strip() in ("Permission denied", "Read-only file system")


# what can be reached

CENSUS = """
import asyncio, json
async def look(host, port, gate):
    async with gate:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 10)
            writer.close()
            return f"{host}:{port}"
        except (OSError, asyncio.TimeoutError):
            return ""
async def census(targets):
    gate = asyncio.Semaphore(400)
    return sorted(filter(None, await asyncio.gather(*(look(host, port, gate) for host, port in targets))))
import threading
said = []
thread = threading.Thread(target=lambda: said.append(asyncio.run(census(%r))))
thread.start(); thread.join()
print(json.dumps(said[0]))
"""


def listening() -> list[tuple[str, int]]:
    """Return every address and port of this machine at which somebody listens."""
    return [(c.laddr.ip, c.laddr.port) for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]


def bridges() -> set[str]:
    """Return the addresses that this machine has in networks of containers."""
    named = {name for name in psutil.net_if_addrs() if Path("/sys/class/net", name, "bridge").exists()}
    return {a.address for name in named for a in psutil.net_if_addrs()[name]}


def test_what_a_container_reaches_is_the_platforms_door_and_nothing_else(crew: Crew) -> None:
    """Every listener of this machine at each of its addresses, the other containers, and the world outside.

    What listens at every address of the machine is open to its containers, unless its firewall says otherwise; doctor names it.
    So is what another platform's door is at its own network's address, where tests beside this one started one.
    """
    crew.serve(user="bert")
    before = listening()
    door, public = way.known(Home(crew.home)).door, crew.ports["public"]
    here = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family.name == "AF_INET"}
    ports = {port for _, port in before}
    assert ports >= set(crew.ports.values()), "the census knows the platform's own ports"
    [network] = crew.container("bert").attrs["NetworkSettings"]["Networks"].values()
    others = [(network["IPAddress"], port) for port in (8888, 22, *range(30000, 30050))]
    outside = [(METADATA, 80), (PUBLIC, 443), (PUBLIC, 80), ("10.0.0.1", 443), ("192.168.0.1", 80)]
    targets = [(address, port) for address in sorted(here - {"127.0.0.1"}) for port in sorted(ports)]
    reached = set(json.loads(crew.run("anna", CENSUS % [*targets, *others, *outside], timeout=180)))
    heard = {*before, *listening()}
    everywhere = {f"{a}:{port}" for address, port in heard if address in EVERY_ADDRESS for a in here}
    doors = {f"{address}:{port}" for address, port in heard if address in bridges() - {door}}
    assert f"{door}:{public}" in reached, "the census finds what is open"
    assert reached - everywhere - doors == {f"{door}:{public}"}


def test_names_of_the_world_outside_lead_nowhere(crew: Crew) -> None:
    code = """
import socket
try:
    print(socket.getaddrinfo("example.org", 443))
except OSError as error:
    print("no address")
"""
    assert crew.run("anna", code).strip() == "no address"


def test_in_a_container_its_own_machine_is_itself(crew: Crew) -> None:
    """What listens at 127.0.0.1 of the platform's machine is not at 127.0.0.1 in a container."""
    ports = sorted({port for address, port in listening() if address.startswith("127.")})
    reached = json.loads(crew.run("anna", CENSUS % [("127.0.0.1", port) for port in ports], timeout=120))
    own = set(json.loads(crew.run("anna", "import json\nprint(json.dumps([int(line.split()[1].split(':')[1], 16) for line in open('/proc/net/tcp') if line.split()[3] == '0A']))")))  # fmt: skip
    assert {int(where.split(":")[1]) for where in reached} <= own


# what can be asked

ASK = """
import httpx, json, os
url, token = os.environ["CELLWORK_URL"], os.environ["CELLWORK_TOKEN"]
said = {}
with httpx.Client(base_url=url, headers={"authorization": f"token {token}"}, timeout=60, trust_env=False) as http:
    for method, path, body in json.loads(%r):
        said[f"{method} {path}"] = http.request(method, path, json=body).status_code
print(json.dumps(said))
"""


def ask(crew: Crew, name: str, wanted: list[tuple[str, str, object]]) -> dict[str, int]:
    """Return what the platform answers to a notebook of `name` with its own token."""
    return dict(json.loads(crew.run(name, ASK % json.dumps(wanted), timeout=120)))


def test_a_notebooks_token_opens_its_owners_things_and_nobody_elses(crew: Crew) -> None:
    bert = crew.people["bert"].client()
    run = bert.jobs.start(RunRequest(project=project_of("bert"), notebook="b.ipynb", content=NOTEBOOK))
    own = [
        ("GET", "/hub/api/user", None),
        ("GET", "/services/jobs/api/v1/runs", None),
        ("GET", "/user/anna/api/contents", None),
    ]
    assert set(ask(crew, "anna", own).values()) == {200}
    others = [
        ("GET", "/user/bert/api/contents", None), ("GET", "/user/bert/api/kernels", None), ("POST", "/user/bert/api/kernels", {}),
        ("GET", "/user/bert/files/canary", None), ("GET", "/user/bert/api/terminals", None), ("GET", "/user/bert/lab", None),
        ("GET", "/user/bert/api/../api/contents", None), ("GET", "/user/anna/..%2fbert/api/contents", None), ("GET", "/user/anna/../bert/api/contents", None),
        ("GET", "/hub/api/users/bert", None), ("GET", "/hub/api/users", None), ("POST", "/hub/api/users/bert/tokens", {}), ("DELETE", "/hub/api/users/bert/server", None),
        ("POST", "/hub/api/users/anna/tokens", {"scopes": ["admin:users"]}), ("GET", "/hub/api/users/anna/tokens", None), ("GET", "/hub/api/proxy", None),
        ("POST", "/hub/api/shutdown", {}), ("GET", "/hub/api/services/cellwork", None),
        ("GET", f"/services/jobs/api/v1/runs/{run.id}", None), ("GET", f"/services/jobs/api/v1/runs/{run.id}/notebook", None), ("POST", f"/services/jobs/api/v1/runs/{run.id}/stop", None),
        ("GET", f"/services/cellwork/api/v1/projects/{project_of('bert')}", None), ("GET", "/services/cellwork/api/v1/users", None), ("GET", "/services/cellwork/api/v1/audit", None),
    ]  # fmt: skip
    said = ask(crew, "anna", others)
    assert {path: status for path, status in said.items() if status not in (400, 403, 404, 405)} == {}
    bert.jobs.stop(run.id)


@pytest.fixture(scope="module")
def kernel(crew: Crew) -> str:
    crew.run("bert", "hidden = 'of bert'")
    return crew.kernels["bert"]


def _open(crew: Crew, kernel: str, headers: dict[str, str], query: str = "") -> int:
    """Return the status of opening the channels of bert's kernel."""
    where = f"{crew.url.replace('http', 'ws', 1)}/user/bert/api/kernels/{kernel}/channels{query}"
    try:
        with connect(where, additional_headers=headers, proxy=None, open_timeout=60):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def test_a_websocket_to_anothers_kernel_stays_closed_to_token_and_cookie(crew: Crew, kernel: str) -> None:
    anna, bert = crew.people["anna"], crew.people["bert"]
    assert _open(crew, kernel, {"authorization": f"token {bert.token()}"}) == 101
    server_token = crew.run("anna", "import os; print(os.environ['JUPYTERHUB_API_TOKEN'])").strip()
    for token in (anna.token(), server_token, "", "0" * 32):
        assert _open(crew, kernel, {"authorization": f"token {token}"}) in (302, 401, 403), token
        assert _open(crew, kernel, {}, f"?token={token}") in (302, 401, 403), token
    with anna.browser() as browser:
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies.jar)
        assert _open(crew, kernel, {"cookie": cookies, "origin": crew.url}) in (302, 401, 403)
        assert browser.get("/user/bert/lab").status_code in (403, 404)


# what ends


def answers(crew: Crew, user: str, token: str) -> int:
    with crew.http(token) as http:
        return http.get(f"/user/{user}/api/contents", follow_redirects=False).status_code


def test_a_token_that_was_taken_back_opens_no_server_any_more(crew: Crew) -> None:
    """A user's server asks the hub as often as the services do; the tests' setting is two seconds, the default 30."""
    anna = crew.people["anna"]
    with crew.hub() as hub:
        made = hub.post("/users/anna/tokens", json={"expires_in": 3600, "scopes": ["access:servers!user=anna"]}).json()
        assert answers(crew, "anna", made["token"]) == 200
        hub.delete(f"/users/anna/tokens/{made['id']}")
    wait_for(lambda: answers(crew, "anna", made["token"]) in (302, 401, 403), 60, "the end of the token")
    assert answers(crew, "anna", anna.token()) == 200


def test_an_open_connection_to_a_kernel_ends_with_its_token(crew: Crew, kernel: str) -> None:
    where = f"{crew.url.replace('http', 'ws', 1)}/user/bert/api/kernels/{kernel}/channels"
    with crew.hub() as hub:
        made = hub.post("/users/bert/tokens", json={"expires_in": 3600, "scopes": ["access:servers!user=bert"]}).json()
        headers = {"authorization": f"token {made['token']}"}
        with connect(where, additional_headers=headers, proxy=None, open_timeout=60) as socket:
            hub.delete(f"/users/bert/tokens/{made['id']}")
            assert close_code(socket) == 4403
    assert crew.run("bert", "hidden") == "'of bert'", "his other connections go on"


@pytest.fixture
def guest(crew: Crew) -> Iterator[Person]:
    """Somebody with a project and a server, who is gone afterwards."""
    person = crew.people.get("gast") or crew.invite("gast")
    person.client().projects.create(project_of("gast"))
    crew.client().projects.add(project_of("anna"), "gast")
    crew.serve("tiny", user="gast")
    yield person
    crew.command("user", "remove", "gast")


def runs(crew: Crew, name: str) -> bool:
    """Say whether the server of `name` is there: its container, or what the hub knows of it."""
    with crew.hub() as hub:
        known = hub.get(f"/users/{name}").json().get("servers", {})
    return "" in known or any(found.name == f"{crew.prefix}-{name}" for found in crew.containers())


def test_a_server_ends_when_its_owner_loses_a_project_or_is_removed_whatever_runs_in_it(
    crew: Crew, guest: Person
) -> None:
    """Nobody asks the hub meanwhile: it looks by itself, because a table stays mounted as long as the container lives."""
    mounted = crew.run("gast", "import os\nprint(sorted(os.listdir('/srv/cellwork/raw')))")
    assert eval(mounted) == [project_of("anna"), project_of("gast")]
    crew.client().projects.remove(project_of("anna"), "gast")
    wait_for(lambda: not runs(crew, "gast"), 60, "the end of the server")
    crew.servers.pop("gast"), crew.kernels.pop("gast")
    crew.serve("tiny", user="gast")
    assert eval(crew.run("gast", "import os\nprint(sorted(os.listdir('/srv/cellwork/raw')))")) == [project_of("gast")]
    crew.command("user", "remove", "gast")
    wait_for(lambda: not runs(crew, "gast"), 60, "the end of the server")
    assert httpx.get(f"{crew.url}/user/gast/api", trust_env=False, timeout=60, follow_redirects=False).status_code in (302, 403, 404, 424, 503)  # fmt: skip
