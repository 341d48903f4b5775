"""User servers in containers on a real engine: what they are given, what they are kept from, what a user is told when one does not start."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import container_world
import docker
import engine as engines
import pytest
from container_world import Contained
from running import START_SECONDS, Server, wait_for

from cellwork.client import Client
from cellwork.errors import Refused, Unavailable
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork.wire.jobs import ResumeRequest, RunRequest
from cellwork.wire.origin import Origin
from cellwork_hub.containers import engine as finding
from cellwork_hub.containers import images, way
from cellwork_hub.jobs.runners import attached

pytestmark = pytest.mark.timeout(3600)  # the first build of the image on a machine installs everything
READY_SECONDS = 60


@pytest.fixture(scope="module")
def contained(
    engine: engines.Engine, cpu_image: images.Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Contained]:
    container_world.lying_images(engine)
    with container_world.running(
        tmp_path_factory.mktemp("contained") / "home", engine, CELLWORK_SERVER_READY_SECONDS=str(READY_SECONDS)
    ) as platform:
        yield platform


@pytest.fixture(scope="module")
def server(contained: Contained) -> Server:
    return contained.serve()


@pytest.fixture(scope="module")
def kernel(server: Server) -> str:
    return server.start_kernel()


def test_a_start_tells_what_it_waits_for(contained: Contained) -> None:
    assert contained.ask("tiny", "first").status_code in (201, 202)
    said = [event["message"] for event in contained.story("first")]
    assert said[-1].startswith("Server ready")
    text = " ".join(said)
    assert "0.8 cores, 700M memory" in text or len(said) <= 2  # it was over before we asked
    contained.stop_server("first")


def test_a_kernel_in_a_container_computes_and_its_work_carries_the_images_digest(
    server: Server, kernel: str, cpu_image: images.Image
) -> None:
    assert server.execute(kernel, "5 * 4") == "20"
    assert server.execute(kernel, "from cellwork import origin; o = origin.gather(); print(o.image_digest, o.env, o.user)").split() == [
        cpu_image.digest, cpu_image.env, "ada",
    ]  # fmt: skip


def test_a_server_has_no_rights_beyond_its_own(server: Server, kernel: str) -> None:
    told = server.execute(kernel, "print(open('/proc/self/status').read())")
    fields = dict(line.split(":\t") for line in told.splitlines() if ":\t" in line)
    assert (fields["Uid"].split()[0], fields["CapEff"], fields["CapBnd"], fields["NoNewPrivs"]) == (
        "1000",
        "0" * 16,
        "0" * 16,
        "1",
    )
    code = "import os; print(os.environ.get('CELLWORK_HOME'), os.path.exists('/var/run/docker.sock'), os.listdir('/srv/cellwork'))"
    assert server.execute(kernel, code).strip() == "None False ['features', 'raw']"


def test_the_projects_tables_are_there_to_read_and_not_to_write(
    contained: Contained, server: Server, kernel: str
) -> None:
    table = contained.home / "data" / "raw" / "trial"
    table.mkdir(parents=True)
    (table / "row.txt").write_text("17")
    assert server.execute(kernel, "print(open('/srv/cellwork/raw/trial/row.txt').read())").strip() == "17"
    code = "try:\n    open('/srv/cellwork/raw/trial/row.txt', 'w')\nexcept OSError as e:\n    print(e.errno)"
    assert int(server.execute(kernel, code)) in (13, 30)
    assert not (contained.home / "data" / "sealed").exists() or "sealed" not in server.execute(
        kernel, "import os; print(os.listdir('/srv/cellwork'))"
    )


def test_a_notebook_in_a_container_reaches_every_service_with_its_own_token(server: Server, kernel: str) -> None:
    code = """
import os, httpx
http = httpx.Client(base_url=os.environ["CELLWORK_URL"], headers={"authorization": "Bearer " + os.environ["CELLWORK_TOKEN"]}, trust_env=False, timeout=60)
for path in ("/services/cellwork/api/v1/events", "/services/jobs/api/v1/jobs", "/services/inference/api/v1/endpoints", "/services/mlflow/version"):
    print(http.get(path).status_code)
import cellwork.client
print(list(cellwork.client.connect().jobs.list()))
"""
    assert server.execute(kernel, code).split() == ["200"] * 4 + ["[]"]


def test_only_the_public_door_of_this_machine_is_open_to_a_container(
    contained: Contained, server: Server, kernel: str
) -> None:
    code = f"""
import socket
gate = "{way.known(Home(contained.home)).door}"
def open_(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((gate, port)) == 0
print([open_(port) for port in {sorted(contained.ports.values())}].count(True), open_({contained.ports["public"]}))
"""
    assert server.execute(kernel, code).split() == ["1", "True"]


def test_memory_over_the_limit_ends_the_kernel_and_not_the_server(contained: Contained, server: Server) -> None:
    kernel = server.start_kernel()
    with pytest.raises((AssertionError, TimeoutError, OSError)):
        server.execute(kernel, "x = bytearray(900 * 2**20)", timeout=20)
    other = server.start_kernel()
    assert server.execute(other, "1 + 1") == "2"
    assert len(contained.containers()) == 1


def test_memory_swap_cores_and_processes_are_limited_as_the_profile_says(contained: Contained, server: Server) -> None:
    [container] = contained.containers()
    limits = container.attrs["HostConfig"]
    said = (limits["Memory"], limits["MemorySwap"], limits["CpuQuota"], limits["PidsLimit"])
    assert said == (700 * 2**20, 700 * 2**20, 80_000, 1024)
    assert limits["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "2"}


def test_what_a_kernels_container_prints_takes_a_bounded_part_of_the_disk(tmp_path: Path) -> None:
    """A server's, too: the test before this one looks at it."""
    client = docker.APIClient(version="1.45")
    options = attached.Options(
        engine="", network="none", image="", memory=2**28, cores=1, labels={}, environment={}, work=str(tmp_path)
    )
    host = attached._host(client, options, [tmp_path])
    client.close()
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}
    assert (host["CapDrop"], host["SecurityOpt"], host["PidsLimit"]) == (["ALL"], ["no-new-privileges"], 1024)
    assert host["Init"]
    assert not host.get("AutoRemove")


def test_a_killed_hub_and_a_killed_proxy_keep_server_and_kernel(
    contained: Contained, server: Server, kernel: str
) -> None:
    server.execute(kernel, "kept = 'since before'")
    for unit in ("hub", "proxy"):
        before = contained.status(unit)
        os.kill(before["pid"], signal.SIGKILL)

        def back(unit: str = unit, before: int = before["restarts"]) -> bool:
            now = contained.status(unit)
            return now["restarts"] > before and now["state"] == "ready"

        wait_for(back, START_SECONDS, f"the {unit}'s return")
        assert wait_for(lambda: _execute(server, kernel, "kept"), 60, "the kernel's answer") == "'since before'"


def _execute(server: Server, kernel: str, code: str) -> str:
    try:
        return server.execute(kernel, code, timeout=10)
    except Exception:  # the door is closed while it is built anew
        return ""


def test_a_second_server_of_one_name_is_refused_and_one_of_another_name_shares_the_volume(
    contained: Contained, server: Server, kernel: str
) -> None:
    again = contained.ask("tiny")
    assert again.status_code == 400
    assert "already running" in again.text
    server.execute(kernel, "open('/home/jovyan/work/mine.txt', 'w').write('mine')")
    second = contained.serve("larger", "second")
    assert second.execute(second.start_kernel(), "open('/home/jovyan/work/mine.txt').read()") == "'mine'"
    assert sorted(c.name for c in contained.containers()) == [
        f"{contained.prefix}-ada",
        f"{contained.prefix}-ada--second",
    ]
    contained.stop_server("second")
    assert [c.name for c in contained.containers(all=True)] == [f"{contained.prefix}-ada"]


IN_A_RUN = """
import json, os, socket
told = {key: os.environ[key] for key in ("CELLWORK_IMAGE_DIGEST", "CELLWORK_TOKEN")}
secrets = [key for key in os.environ if "RUNNER" in key or key == "CELLWORK_HOME"]
print(json.dumps({**told, "uid": os.getuid(), "where": socket.gethostname(), "secrets": secrets, "work": sorted(os.listdir("."))}))
"""
START_A_RUN = """
import json, nbformat, os, socket, cellwork.client
from cellwork.wire.jobs import ResumeRequest, RunRequest
kernel = {"name": "python3", "display_name": "Python 3"}
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(%r)], metadata={"kernelspec": kernel})
client = cellwork.client.connect()
run = client.jobs.start(RunRequest(project="trial", notebook="small.ipynb", content=nbformat.writes(notebook), files={"beside.txt": "x"}))
run = client.jobs.wait(run.id, timeout=120)
page = json.loads(client.jobs.notebook(run.id)) if run.state == "succeeded" else None
text = "".join(page["cells"][-1]["outputs"][0]["text"]) if page else "{}"
print(json.dumps([run.state, run.image_digest, [a.error for a in run.attempts], json.loads(text), os.environ["CELLWORK_TOKEN"], socket.gethostname()]))
"""


def test_a_run_executes_in_a_container_of_the_image_it_was_started_from_with_its_own_token(
    server: Server, kernel: str, cpu_image: images.Image
) -> None:
    """The notebook starts a run; its kernel is in another container, of the same digest, and sees nothing of the runner."""
    state, digest, errors, told, token, here = json.loads(server.execute(kernel, START_A_RUN % IN_A_RUN, timeout=150))
    assert (state, digest) == ("succeeded", cpu_image.digest), errors
    assert (told["CELLWORK_IMAGE_DIGEST"], told["uid"], told["secrets"]) == (cpu_image.digest, 1000, [])
    assert told["work"] == ["beside.txt", "small.ipynb"]
    assert told["CELLWORK_TOKEN"] != token
    assert told["where"] != here


def test_a_run_of_an_image_that_is_gone_fails_and_names_it(contained: Contained) -> None:
    client = Client(contained.url, contained.user_token("inherit"))
    gone = "sha256:" + "0" * 64
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1", "outputs": [], "execution_count": None}
    content = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]})
    asked = RunRequest(project="trial", notebook="n.ipynb", content=content, origin=Origin(image_digest=gone))
    run = client.jobs.wait(client.jobs.start(asked).id, timeout=120)
    assert (run.state, run.image_digest) == ("failed", gone)
    assert "is not here" in run.attempts[-1].error


def test_a_run_in_a_container_goes_on_from_its_checkpoint_and_carries_nothing_that_a_link_points_to(
    contained: Contained, cpu_image: images.Image
) -> None:
    """Its first attempt fails below the checkpoint; the second, in another container, finds values and files of the first."""
    sources = {
        "a": "import os, pathlib, socket\nvalue, here = 41, socket.gethostname()\npathlib.Path('made.txt').write_text('by the first')",
        "b": "os.symlink('/etc/shadow', 'stolen')\nos.symlink('/etc', 'folder')",
        "c": "assert here != socket.gethostname()",
        "d": "pathlib.Path('made.txt').open('a').write(', and the second')\nprint(value + 1, pathlib.Path('made.txt').read_text(), sorted(os.listdir('.')))",
    }
    cells = [
        {"cell_type": "code", "id": k, "metadata": {"tags": ["checkpoint"] if k == "b" else []}, "source": source, "outputs": [], "execution_count": None}
        for k, source in sources.items()
    ]  # fmt: skip
    jobs = Client(contained.url, contained.user_token("inherit")).jobs
    content = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})
    asked = RunRequest(
        project="trial", notebook="n.ipynb", content=content, origin=Origin(image_digest=cpu_image.digest)
    )
    run = jobs.wait(jobs.start(asked).id, timeout=120)
    assert (run.state, "AssertionError" in run.attempts[-1].error) == ("failed", True), run.attempts
    jobs.resume(run.id, ResumeRequest(new_kernel=True))
    ended = jobs.wait(run.id, timeout=120)
    assert (ended.state, [a.first_cell for a in ended.attempts]) == ("succeeded", [1, 3]), ended.attempts
    printed = "".join(json.loads(jobs.notebook(run.id))["cells"][-1]["outputs"][0]["text"]).strip()
    assert printed == "42 by the first, and the second ['made.txt', 'n.ipynb']"


def test_the_container_of_a_run_that_was_stopped_is_removed_when_another_begins(contained: Contained) -> None:
    jobs = Client(contained.url, contained.user_token("inherit")).jobs

    def start(source: str) -> str:
        cell = {
            "cell_type": "code",
            "id": "a",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        content = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]})
        return jobs.start(RunRequest(project="trial", notebook="n.ipynb", content=content)).id

    def kernels(status: str) -> set[str]:
        assert contained.engine
        ours = f"cellwork.kernel={way.label(Home(contained.home))}"  # other platforms' tests may share the engine
        found = contained.engine.client.containers.list(filters={"label": ours, "status": status}, ignore_removed=True)
        return {container.id for container in found}

    run = start("import time; time.sleep(600)")
    wait_for(lambda: jobs.run(run).state == "running", 120, "the run")
    jobs.stop(run)
    jobs.wait(run, timeout=60)
    ended = wait_for(lambda: kernels("exited"), 60, "the end of its container")
    wait_for(
        lambda: jobs.wait(start("1"), timeout=120) and not ended & kernels("exited"), 120, "the end of what is left"
    )


@pytest.fixture(scope="module")
def mute(contained: Contained) -> None:
    """A server that will never answer; it is looked at when it has been silent for long enough."""
    contained.ask("silent", "mute")


@pytest.mark.usefixtures("mute")
@pytest.mark.parametrize(
    ("profile", "status", "said"),
    [
        ("tinny", 404, "did you mean 'tiny'"),
        ("gpu", 503, "asks for 1 GPU, and the container engine has none to give"),
        ("broken", 503, "has no command cellwork-server"),
        ("nowhere", 404, "can't be pulled"),
        ("unbuilt", 404, "cellwork image build gpu"),
        ("starved", 503, "needed more than the 256M"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_no_container(
    contained: Contained, profile: str, status: int, said: str
) -> None:
    answer = contained.ask(profile, "wrong")
    if answer.status_code == 202:
        text = contained.story("wrong")[-1]["message"]
    else:
        assert answer.status_code == status
        text = answer.json()["message"]
    assert said in text
    assert "Traceback" not in text
    assert f"{contained.prefix}-ada--wrong" not in [c.name for c in contained.containers(all=True)]


def test_two_users_whose_names_are_alike_have_nothing_in_common(contained: Contained) -> None:
    """Names with dashes and names of servers: no two of them make one container or one volume."""
    from cellwork_hub.config.containers import ContainerSpawner

    escape = ContainerSpawner._escape
    made = {f"{escape(user)}--{escape(name)}" if name else escape(user) for user, name in [("a", "b"), ("a--b", ""), ("a-", "b"), ("a", "-b"), ("A", "b"), ("a-2db", "")]}  # fmt: skip
    assert len(made) == 6


def test_an_engine_that_is_not_there_or_not_ours_is_named_and_local_processes_are_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no such socket"):
        finding.connect(f"unix://{tmp_path}/none.sock")
    chosen = Settings(home=tmp_path, container_engine="none")
    assert way.look(chosen).text.startswith("local processes, no limits enforced: containers are switched off")
    assert way.look(Settings(home=tmp_path, container_engine="none", trust="team")).kind == "none"


def test_an_engine_that_this_account_may_not_use_is_named_with_the_way_out(engine: engines.Engine) -> None:
    os.seteuid(65_532)
    try:
        with pytest.raises(Refused, match=r"permission denied.*docker"):
            finding.connect(engine.address)
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("mute")
def test_a_server_that_never_answers_is_given_up_with_its_last_words(contained: Contained) -> None:
    end = contained.story("mute")[-1]
    assert end["failed"]
    assert f"did not answer in {READY_SECONDS} s" in end["message"]
    assert "I am thinking" in end["message"]
    assert f"{contained.prefix}-ada--mute" not in [c.name for c in contained.containers(all=True)]
