"""The supervisor's own logic, on small real processes: order, readiness, restart, giving up, stopping all."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ports import free_port
from running import gone, wait_for

from cellwork import files
from cellwork.errors import Conflict, Refused
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork_hub import preparation, processes, supervisor
from cellwork_hub.context import SERVICES
from cellwork_hub.supervisor import Supervisor
from cellwork_hub.units import Unit, environment, platform_units

SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
UNLESS = "import os, sys\nif os.path.exists(sys.argv[2]): sys.exit(1)\n"
SLEEPER = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True); time.sleep(600)"


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def server(name: str, **more: object) -> Unit:
    port = free_port()
    return Unit(name, python(SERVER, str(port)), (f"http://127.0.0.1:{port}/",), port=port, **more)  # type: ignore[arg-type]


Make = Callable[..., Supervisor]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a supervisor of these units; it is stopped at the end, and nothing of it is left."""
    made: list[Supervisor] = []

    def supervise(*units: Unit, ready_seconds: float = 90) -> Supervisor:
        home = Home(tmp_path / "home").ensure()
        environ = environment(Settings(home=home.root), processes.new_instance())
        made.append(Supervisor(home, units, environ, ready_seconds=ready_seconds))
        return made[-1]

    yield supervise
    for each in made:
        each.stop()
        assert processes.of_instance(each.instance) == []


def turn_until(one: Supervisor, condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, one.children
        one.turn()
        time.sleep(0.02)


def pid(one: Supervisor, name: str) -> int:
    process = one.children[name].process
    assert process
    return process.pid


def test_a_unit_starts_only_when_those_before_it_are_ready(make: Make) -> None:
    one = make(server("first"), Unit("second", python(SLEEPER), settle=0.1, after=("first",)))
    one.turn()
    assert one.children["second"].process is None
    turn_until(one, lambda: one.complete)
    assert [s.state for s in one.children.values()] == ["ready", "ready"]


def test_a_killed_unit_is_started_again_and_what_it_had_started_is_ended(make: Make) -> None:
    one = make(Unit("parent", python(PARENT), settle=0.1))
    turn_until(one, lambda: len(processes.of_instance(one.instance)) == 2)
    first = pid(one, "parent")
    [child] = psutil.Process(first).children()
    os.kill(first, signal.SIGKILL)
    turn_until(one, lambda: one.children["parent"].restarts == 1 and one.children["parent"].state == "ready")
    assert pid(one, "parent") != first
    wait_for(lambda: gone(child.pid), 60, "the end of what it had started")


def test_a_unit_that_dies_again_and_again_is_given_up_with_the_way_to_its_log(make: Make) -> None:
    one = make(Unit("broken", python("import sys; print('no luck', flush=True); sys.exit(3)"), settle=600))
    turn_until(one, lambda: one.children["broken"].state == "failed")
    status = one.children["broken"].status()
    assert "exit code 3, 5 times in a row" in status.message
    assert status.message.endswith(f"look into {one.home.log('broken')}")
    assert one.home.log("broken").read_text().count("no luck") == 5
    assert one.run() == 1


def test_a_unit_that_ends_before_it_is_ready_is_given_up_however_slow_the_machine_is(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start took longer than a rapid death may, and `cellwork up` waited for it for ever."""
    monkeypatch.setattr(supervisor, "RAPID_SECONDS", 0.0)
    one = make(Unit("broken", python("import sys; sys.exit(3)"), settle=600))
    turn_until(one, lambda: one.children["broken"].state == "failed")
    assert "exit code 3, 5 times in a row" in one.children["broken"].message


def test_a_unit_that_never_answers_is_ended_after_the_bound(make: Make) -> None:
    one = make(Unit("mute", python(SLEEPER), (f"http://127.0.0.1:{free_port()}/",)), ready_seconds=0.5)
    turn_until(one, lambda: one.children["mute"].state == "failed")
    assert "was not ready in" in one.children["mute"].message
    assert processes.of_instance(one.instance) == []


def test_one_unit_given_up_later_does_not_take_the_others_along(make: Make) -> None:
    one = make(server("steady"), Unit("other", python(SLEEPER), settle=0.1))
    turn_until(one, lambda: one.complete)
    one.give_up(one.children["other"], "was lost")
    one.turn()
    assert not one.stopping
    assert one.children["steady"].state == "ready"


def test_a_unit_given_up_later_is_tried_again_until_it_lives(make: Make, tmp_path: Path) -> None:
    """Trouble of some seconds, as of a full disk, cost a service for good."""
    trouble = tmp_path / "trouble"
    port = free_port()
    one = make(Unit("ill", python(UNLESS + SERVER, str(port), str(trouble)), (f"http://127.0.0.1:{port}/",)))
    turn_until(one, lambda: one.complete)
    trouble.touch()
    os.kill(pid(one, "ill"), signal.SIGKILL)
    child = one.children["ill"]
    turn_until(one, lambda: child.state == "failed")
    assert "5 times in a row; look into " in child.message
    assert "it is started again in 3 s" in child.message
    board = supervisor.read_board(one.home)
    assert board is not None
    assert board.state() == "failed"
    trouble.unlink()
    turn_until(one, lambda: child.state == "ready")
    assert child.restarts == 5


def test_a_start_too_slow_after_everything_was_ready_is_tried_again_too(make: Make, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    port = free_port()
    code = f"import os, sys, time\nif os.path.exists(sys.argv[2]): {PARENT}\n" + SERVER
    one = make(Unit("slow", python(code, str(port), str(slow)), (f"http://127.0.0.1:{port}/",)))
    turn_until(one, lambda: one.complete)
    one.ready_seconds = 1.0
    slow.touch()
    os.kill(pid(one, "slow"), signal.SIGKILL)
    turn_until(one, lambda: one.children["slow"].state == "failed")
    assert "was not ready in 1 s" in one.children["slow"].message
    assert processes.of_instance(one.instance) == []
    slow.unlink()
    one.ready_seconds = 60
    turn_until(one, lambda: one.children["slow"].state == "ready")


def test_the_wait_for_the_next_start_grows_to_a_bound_however_often_it_failed(make: Make) -> None:
    one = make(Unit("lost", python(SLEEPER), settle=0.1))
    one.complete = True
    child = one.children["lost"]
    waits = []
    for child.failures in (1, 5, 6, 20, 5000):
        one.give_up(child, "was lost")
        waits.append(child.retry_at - time.monotonic())
    assert waits == pytest.approx([0.2, 3.2, 6.4, 60, 60], abs=0.1)


def test_the_hub_comes_back_though_a_service_is_lost(make: Make) -> None:
    """It was held to the routes of all services at each restart, and given up with the first lost one."""
    lost = server("lost")
    hub = server("hub", first=lost.ready)
    one = make(lost, hub)
    turn_until(one, lambda: one.complete)
    one.end([one.children["lost"]])
    one.children["lost"].retry_at = time.monotonic() + 600
    os.kill(pid(one, "hub"), signal.SIGKILL)
    turn_until(one, lambda: one.children["hub"].restarts == 1 and one.children["hub"].state == "ready", 30)


def test_the_first_start_of_the_hub_waits_for_the_ways_to_the_services(make: Make, tmp_path: Path) -> None:
    one = make(server("hub", first=(f"http://127.0.0.1:{free_port()}/",)), ready_seconds=1)
    turn_until(one, lambda: one.children["hub"].state == "failed")
    chosen = Settings(home=tmp_path, port=0)
    ports = preparation.ports(chosen)
    [hub] = [unit for unit in platform_units(chosen, ports) if unit.name == "hub"]
    assert hub.ready == (f"http://127.0.0.1:{ports['public']}/hub/health",)
    assert len(hub.first) == len(SERVICES)


def test_stopping_ends_later_starts_first_and_leaves_nothing_even_of_the_deaf(make: Make) -> None:
    order: list[str] = []
    one = make(
        Unit("first", python(STUBBORN), grace=0.5, settle=0.1),
        Unit("second", python(PARENT), settle=0.1, after=("first",)),
    )
    turn_until(one, lambda: one.complete and "deaf" in one.home.log("first").read_text())
    end = one.end
    one.end = lambda children: (order.extend(c.unit.name for c in children), end(children))[1]  # type: ignore[method-assign]
    one.stop()
    assert order == ["second", "first"]
    assert processes.of_instance(one.instance) == []
    board = supervisor.read_board(one.home)
    assert board is not None
    assert {s.state for s in board.services} == {"stopped"}


def test_a_log_over_the_limit_is_put_aside_at_the_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ROTATE_BYTES", 10)
    one = make(Unit("talker", python("print('new', flush=True)\n" + SLEEPER)))
    one.home.log("talker").write_text("old " * 10)
    turn_until(one, lambda: one.home.log("talker").exists() and "new" in one.home.log("talker").read_text())
    assert "old" not in one.home.log("talker").read_text()
    assert "old" in one.home.log("talker").with_suffix(".log.1").read_text()


def test_a_log_over_the_limit_is_put_aside_while_its_writer_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor's own, too. Of what is put aside the last part stays, as much as the limit is."""
    monkeypatch.setattr(supervisor, "ROTATE_BYTES", 1000)
    monkeypatch.setattr(supervisor, "ROTATE_SECONDS", 0.2)
    talk = "import time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.001)"
    one = make(Unit("talker", python(talk), settle=0.1))
    own, log = one.home.log("supervisor"), one.home.log("talker")
    own.write_text("x" * 5000 + "the end")
    turn_until(one, lambda: log.with_suffix(".log.1").exists() and own.with_suffix(".log.1").exists())
    aside = own.with_suffix(".log.1").read_text()
    assert (len(aside), aside[-7:], own.read_text()) == (1000, "the end", "")
    first = log.with_suffix(".log.1").read_bytes()
    turn_until(one, lambda: log.with_suffix(".log.1").read_bytes() != first)
    assert b"\0" not in log.read_bytes()  # it is written at its end, and not where the writer was
    assert one.children["talker"].restarts == 0


def test_a_log_that_cannot_be_put_aside_is_cut_all_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk that is what makes room."""
    monkeypatch.setattr(supervisor, "ROTATE_BYTES", 10)
    one = make(Unit("talker", python(SLEEPER)))
    log = one.home.log("talker")
    log.write_text("old " * 10)
    log.with_suffix(".log.1").mkdir()
    one.turn()
    assert log.read_text() == ""


def test_the_board_names_the_supervisor_by_pid_and_start_time(make: Make) -> None:
    one = make(server("first"))
    turn_until(one, lambda: one.complete)
    board = supervisor.running(one.home)
    assert board is not None
    assert (board.pid, board.state()) == (os.getpid(), "ready")
    board.created -= 100  # another process had this pid before
    supervisor.write_board(one.home, board)
    assert supervisor.running(one.home) is None


def test_a_torn_board_or_ports_file_is_as_none(tmp_path: Path) -> None:
    home = Home(tmp_path).ensure()
    home.pids().write_text('{"instance": "a')
    home.ports().write_text('{"public": "x"}')
    assert supervisor.running(home) is None
    assert preparation.known_ports(home) == {}


def test_children_see_every_setting_as_resolved_and_nothing_of_who_called(tmp_path: Path) -> None:
    base = {
        "CELLWORK_TOKEN": "secret",
        "MLFLOW_TRACKING_URI": "x",
        "PYTHONDONTWRITEBYTECODE": "1",
        "JUPYTERHUB_API_TOKEN": "y",
        "PATH": "/bin",
    }
    environ = environment(Settings(home=tmp_path, port=0), "abc", base)
    assert not {"CELLWORK_TOKEN", "MLFLOW_TRACKING_URI", "PYTHONDONTWRITEBYTECODE", "JUPYTERHUB_API_TOKEN"} & set(
        environ
    )
    assert (environ["PATH"], environ["CELLWORK_PORT"], environ["CELLWORK_HOME"]) == ("/bin", "0", str(tmp_path))
    assert environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_ports_are_kept_while_they_are_free(tmp_path: Path) -> None:
    chosen = Settings(home=tmp_path, port=0)
    chosen.folder.ensure()
    first = preparation.ports(chosen)
    assert preparation.ports(chosen) == first
    assert len(set(first.values())) == len(first)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first["hub"]))
        taken.listen()
        again = preparation.ports(chosen)
    assert again["hub"] != first["hub"]
    assert {k: v for k, v in again.items() if k != "hub"} == {k: v for k, v in first.items() if k != "hub"}


def test_a_taken_public_port_is_named_with_its_holder_and_a_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict) as caught:
            preparation.public_port(Settings(home=tmp_path, port=port), 0)
    assert str(port) in str(caught.value)
    assert f"CELLWORK_PORT={port + 1} cellwork up" in str(caught.value)


def test_secrets_are_random_private_and_kept(tmp_path: Path) -> None:
    home = Home(tmp_path).ensure()
    preparation.make_secrets(home)
    first = {path.name: path.read_text() for path in home.secrets.iterdir()}
    preparation.make_secrets(home)
    assert first == {path.name: path.read_text() for path in home.secrets.iterdir()}
    assert len(set(first.values())) == len(first)
    assert {path.stat().st_mode & 0o777 for path in home.secrets.iterdir()} == {0o600}
    home.secret("password").chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        preparation.make_secrets(home)


def test_a_second_supervisor_is_refused_by_the_lock(tmp_path: Path) -> None:
    home = Home(tmp_path).ensure()
    with files.locked(home.lock(), "cellwork up"), pytest.raises(Conflict, match="cellwork up"):
        supervisor.supervise(Settings(home=tmp_path, port=0))


def test_an_account_name_becomes_a_user_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for account, name in (("Ada.Lovelace", "ada-lovelace"), ("1234", "jovyan"), ("root", "root")):
        monkeypatch.setenv("LOGNAME", account)
        assert preparation.one_user(Settings(home=tmp_path)) == name


def test_the_hub_and_all_services_are_among_the_units(tmp_path: Path) -> None:
    chosen = Settings(home=tmp_path, port=0)
    chosen.folder.ensure()
    names = [unit.name for unit in platform_units(chosen, preparation.ports(chosen))]
    assert names == ["cellwork", "mlflow", "jobs", "inference", "dashboards", "proxy", "hub", "voila", "runner"]
