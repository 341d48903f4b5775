"""`%deploy`, `%%canary` and `%%shadow` against a real service; the effect is read through the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import serving_world as world
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import cellwork_jupyter.kernel as extension
from cellwork.client import Client
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    for version in (1, 2, 3):
        folders.add(world.saved(version, folder / str(version)), version)
    context = world.context(tmp_path_factory.mktemp("home"))

    def service() -> FrontDoor:
        return build(context, authorise=world.authorise, registry=folders, lookup=lambda *_: {})

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        yield client


@pytest.fixture
def shell(client: Client, monkeypatch: pytest.MonkeyPatch) -> InteractiveShell:
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "deployer")
    shell = InteractiveShell.instance()
    extension.load(shell)
    return shell


def test_the_cell_under_a_magic_is_the_reason_and_the_routes_are_what_the_service_says(
    client: Client, shell: InteractiveShell
) -> None:
    live = shell.run_line_magic("deploy", f"{world.MODEL} 1")
    assert live.table == client.endpoints.get(world.MODEL).routes
    shown = shell.run_cell_magic("canary", f"{world.MODEL} 2 --weight 10% --when plan=paid", "better on november\n")
    assert "version 2 answers 10% of units; plan in paid" in repr(shown)
    assert "<th>canary</th>" in shown._repr_html_()
    assert client.records.audit(service="inference")[-1].reason == "better on november"
    shell.run_cell_magic("shadow", f"{world.MODEL} 3", "to look at")
    table = client.endpoints.get(world.MODEL).routes
    assert ([arm.version.version for arm in table.canary], [arm.version.version for arm in table.shadow]) == ([2], [3])


def test_a_refusal_is_told_in_one_line_and_a_revision_that_moved_stops_it(
    client: Client, shell: InteractiveShell
) -> None:
    shell.run_line_magic("deploy", f"{world.MODEL} 1")
    with pytest.raises(UsageError, match="was changed meanwhile"):
        shell.run_line_magic("canary", f"{world.MODEL} 2 --weight 20% --revision 0")
    with pytest.raises(UsageError, match="is not a share"):
        shell.run_line_magic("canary", f"{world.MODEL} 2 --weight much")
