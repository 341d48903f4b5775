"""`cellwork up`, `down`, `status`, `doctor`, `user` as a person types them, and their bad luck: one clear message, nothing half done."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running import (
    CELLWORK,
    START_SECONDS,
    Platform,
    board,
    command,
    ended_afterwards,
    environment,
    gone,
    left_of,
    logs,
    wait_for,
)

from cellwork.errors import Unavailable
from cellwork.settings import Settings
from cellwork_hub import doctor

UNITS = ("cellwork", "mlflow", "jobs", "inference", "dashboards", "proxy", "hub", "voila", "runner")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home; whatever a test started in it is stopped."""
    home = tmp_path / "home"
    with ended_afterwards(home):
        yield home
        command(home, "down")


def up(home: Path) -> subprocess.Popen[str]:
    """Start `cellwork up` in a session of its own, as a terminal does."""
    return subprocess.Popen(
        [CELLWORK, "up"],
        env=environment(home),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_up_again_is_quick_and_starts_nothing(platform: Platform) -> None:
    """Quick is what the command computes; how long that takes is the machine's."""
    before, used = board(platform.home), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    again = platform.command("up")
    assert again.returncode == 0, again.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used < 5
    assert f"Cellwork runs at {platform.url}" in again.stdout
    assert "ada" in again.stdout
    assert str(platform.home / "secrets" / "password") in again.stdout
    assert platform.password not in again.stdout
    assert board(platform.home) == before


def test_status_tells_what_runs_where_with_how_much_memory(platform: Platform) -> None:
    told = json.loads(platform.command("status", "--json").stdout)
    assert (told["state"], told["address"]) == ("ready", platform.url)
    assert "no secrecy" in told["trust"]
    services = {service["name"]: service for service in told["services"]}
    user_servers = services.pop("user-servers")
    assert user_servers["state"] in ("ready", "stopped")
    assert set(services) == {*UNITS, "supervisor"}
    assert all(service["state"] == "ready" and service["memory_mb"] > 5 for service in services.values())
    text = platform.command("status").stdout
    assert platform.url in text
    assert "no secrecy" in text


def test_the_idle_platform_takes_less_than_two_and_a_half_gigabytes(platform: Platform) -> None:
    platform.start_server()
    services = json.loads(platform.command("status", "--json").stdout)["services"]
    total = sum(service["memory_mb"] for service in services)
    print(f"idle platform with one user: {total:.0f} MB", {s["name"]: round(s["memory_mb"]) for s in services})
    assert total < 2500


@pytest.mark.parametrize("name", [name for name in UNITS if name != "hub"])
def test_a_killed_service_comes_back(platform: Platform, name: str) -> None:
    before = platform.status(name)
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(
        lambda: (now := platform.status(name))["restarts"] > before["restarts"] and now["state"] == "ready",
        START_SECONDS,
        f"the return of {name}",
    )
    assert httpx.get(f"{platform.url}/hub/health", trust_env=False, timeout=60).status_code == 200


def test_a_taken_port_is_named_with_a_way_out_and_nothing_is_started(platform: Platform, home: Path) -> None:
    port = platform.url.rpartition(":")[2]
    refused = command(home, "up", "--port", port)
    assert refused.returncode == 3
    assert refused.stderr.startswith(f"cellwork: port '{port}': is taken by ")
    assert f"CELLWORK_PORT={int(port) + 1} cellwork up" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (home / "run" / "pids.json").exists()


def test_a_running_platform_is_not_moved_to_another_port(platform: Platform) -> None:
    refused = platform.command("up", "--port", "1")
    assert refused.returncode == 3
    assert "cellwork down" in refused.stderr


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = command(tmp_path / "file" / "home", "up")
    assert refused.returncode == 3
    assert "can't be written" in refused.stderr
    assert "set CELLWORK_HOME" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "hub", ("jupyterhub", "no_such_module"))
    chosen = Settings(home=tmp_path, port=0)
    with pytest.raises(Unavailable, match=r"no_such_module.*pip install"):
        doctor.can_start(chosen)
    found = {check.name: check for check in doctor.examine(chosen)}
    assert (found["extra hub"].verdict, found["extra jobs"].verdict) == ("missing", "ok")


def test_doctor_names_every_check_and_fails_only_on_what_is_needed(platform: Platform, tmp_path: Path) -> None:
    healthy = platform.command("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(healthy.stdout)}
    assert {
        "Python",
        "extra hub",
        "extra jupyter",
        "extra jobs",
        "proxy",
        "home",
        "port",
        "memory",
        "disk",
        "chromium",
        "redis",
        "user servers",
    } == set(checks)
    assert healthy.returncode == int(any(check["verdict"] == "missing" for check in checks.values()))
    (tmp_path / "file").write_text("")
    ill = command(tmp_path / "file" / "home", "doctor")
    assert ill.returncode == 1
    assert "missing  home" in ill.stdout


HIDES = """
import importlib.machinery
find_spec = importlib.machinery.PathFinder.find_spec
def hides(name, path=None, target=None):
    return None if name == {name!r} else find_spec(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(hides)
"""


@pytest.mark.parametrize(("module", "extra"), [("jupyterhub", "hub"), ("jupyterlab", "jupyter"), ("papermill", "jobs")])
def test_up_without_one_of_the_extras_says_which_and_starts_nothing(home: Path, module: str, extra: str) -> None:
    """An interpreter that does not find one package: as after `pip install cellwork` without the extra."""
    hidden = home.parent / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDES.format(name=module))
    environ = {**environment(home), "PYTHONPATH": str(hidden)}
    refused = subprocess.run([CELLWORK, "up"], env=environ, cwd="/", capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
    assert module in refused.stderr
    assert "pip install 'cellwork[all]'" in refused.stderr
    assert not (home / "run" / "pids.json").exists()
    told = subprocess.run([CELLWORK, "doctor"], env=environ, cwd="/", capture_output=True, text=True, timeout=60)
    assert f"extra {extra}" in next(line for line in told.stdout.splitlines() if module in line)


def test_down_where_nothing_runs_says_so_twice(home: Path) -> None:
    for _ in range(2):
        stopped = command(home, "down")
        assert (stopped.returncode, stopped.stdout.strip()) == (0, "Cellwork does not run")
    assert command(home, "status").returncode == 4


def test_ctrl_c_in_the_middle_of_a_start_leaves_nothing(home: Path) -> None:
    starting = up(home)
    wait_for(
        lambda: (home / "run" / "pids.json").exists() and any(s["pid"] for s in board(home)["services"]),
        START_SECONDS,
        "the first process",
    )
    instance = board(home)["instance"]
    os.kill(starting.pid, signal.SIGINT)
    errors = starting.communicate(timeout=60)[1]
    assert starting.returncode == 130
    assert errors.strip() == "interrupted; stopping what was started"
    assert left_of(home, instance) == []


def test_a_platform_started_twice_at_once_and_killed_hard_recovers_and_stops_clean(home: Path) -> None:
    both = [up(home), up(home)]
    answers = [each.communicate(timeout=START_SECONDS) for each in both]
    assert [each.returncode for each in both] == [0, 0], str(answers) + logs(home)
    addresses = {line for text, _ in answers for line in text.splitlines() if line.startswith("Cellwork runs at")}
    assert len(addresses) == 1
    killed = board(home)
    orphans = [s["pid"] for s in killed["services"]]
    os.kill(killed["pid"], signal.SIGKILL)
    wait_for(lambda: gone(killed["pid"]), 60, "the end of the supervisor")
    assert command(home, "status").returncode == 4
    again = command(home, "up")
    assert again.returncode == 0, again.stdout + again.stderr + logs(home)
    assert addresses <= set(again.stdout.splitlines())
    assert left_of(Path("/nowhere"), killed["instance"]) == []
    assert not {s["pid"] for s in board(home)["services"]} & set(orphans)
    instance = board(home)["instance"]
    stopped = command(home, "down")
    assert stopped.stdout.strip() == "Cellwork has stopped"
    assert left_of(home, instance) == []


def test_a_service_that_cannot_start_is_named_with_its_log_and_nothing_is_left(home: Path) -> None:
    (home / "db").mkdir(parents=True)
    (home / "db" / "jobs.sqlite").write_bytes(b"not a database" * 100)
    failed = command(home, "up")
    assert failed.returncode == 4
    assert failed.stderr.startswith("cellwork: service 'jobs': ended with exit code 1, 5 times in a row; look into ")
    assert failed.stderr.count("\n") == 1
    assert "file is not a database" in (home / "logs" / "jobs.log").read_text()
    assert left_of(home, board(home)["instance"]) == []


def test_foreground_stops_on_sigterm(home: Path) -> None:
    running = subprocess.Popen(
        [CELLWORK, "up", "--foreground"], env=environment(home), cwd="/", stdout=subprocess.PIPE, text=True
    )
    wait_for(
        lambda: (home / "run" / "pids.json").exists() and any(s["pid"] for s in board(home)["services"]),
        START_SECONDS,
        "the first process",
    )
    running.terminate()
    text = running.communicate(timeout=60)[0]
    assert running.returncode == 0
    assert "everything has stopped" in text
    assert left_of(home, board(home)["instance"]) == []


def test_the_user_command_shows_the_password_only_when_asked(platform: Platform) -> None:
    listed = platform.command("user", "--json")
    assert json.loads(listed.stdout)[0]["name"] == "ada"
    assert platform.password not in listed.stdout
    assert platform.command("user", "password").stdout.strip() == platform.password
