"""How a version comes to this process: gate, copy by digest, predictor, sanity test, warm. Nothing here changes a route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from cellwork import ids
from cellwork.errors import Refused
from cellwork.home import Home
from cellwork.models.compiled import NotCompiled
from cellwork.serving import signature
from cellwork.serving.choose import Served
from cellwork.serving.inline import Inline
from cellwork.serving.plan import Plan
from cellwork.serving.predictor import Predictor
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.gate import Gate
from cellwork_hub.inference import registry as registries
from cellwork_hub.inference import sanity
from cellwork_hub.inference.registry import Registry
from cellwork_hub.inference.table import Deployed

AnyPredictor = Predictor | Inline


@dataclass(frozen=True)
class Prepared:
    """A version that is loaded, checked and warm, and what was seen meanwhile."""

    ref: VersionRef
    plan: Plan
    predictor: AnyPredictor
    checks: list[str]


class Loader:
    def __init__(self, home: Home, registry: Registry, megabytes: int) -> None:
        """`megabytes` is the address space of each child process."""
        self.home, self.registry, self.megabytes = home, registry, megabytes

    async def gate(self, name: str, version: int, promoter: str) -> Gate:
        return await to_thread.run_sync(self.registry.gate, name, version, promoter)

    async def prepare(self, gate: Gate) -> Prepared:
        """Return the gate's version ready for traffic; raises Refused, with what was seen, if it is not fit for it."""
        ref = gate.version
        project = ids.split_name(ref.name)[0]
        copy = await to_thread.run_sync(
            lambda: registries.copy(self.registry, ref, self.home.models(), passed=gate.passed)
        )
        definitions = await to_thread.run_sync(self.registry.definitions, project)
        plan = signature.plan(project, copy.manifest.columns, definitions)
        predictor, expected, how = await self._loaded(copy.folder, ref)
        try:
            seen = await sanity.check(predictor, copy, f"version {full(ref)}", expected)
        except BaseException:
            await predictor.close()
            raise
        return Prepared(ref, plan, predictor, [*how, *seen])

    def returned(self, deployed: Deployed, held: Mapping[str, AnyPredictor]) -> Served:
        """Return a deployment as it was: with the predictor held for its digest, else loaded from this machine's copy, in the background
        if a child has to load it. Neither registry nor hub is needed.
        """
        ref = deployed.record.version
        if ref.digest in held:
            return Served(ref, deployed.record.id, deployed.plan, held[ref.digest])
        inline = self._inline(self._copy(ref.digest), ref)
        if inline.restore():
            return Served(ref, deployed.record.id, deployed.plan, inline)
        predictor = Predictor(self._copy(ref.digest), full(ref), megabytes=self.megabytes)
        predictor.keep_trying()
        return Served(ref, deployed.record.id, deployed.plan, predictor)

    def _inline(self, folder: Path, ref: VersionRef) -> Inline:
        return Inline(folder, ref.digest, full(ref), self.home.compiled())

    async def _loaded(self, folder: Path, ref: VersionRef) -> tuple[AnyPredictor, list[float], list[str]]:
        """Return the version compiled, else the predictor of a child process, with the scores it must give and why."""
        inline = self._inline(folder, ref)
        try:
            await inline.start()
        except NotCompiled as error:
            return Predictor(folder, full(ref), megabytes=self.megabytes), error.expected, [f"compiled: no, {error}"]
        return inline, [], []

    def _copy(self, digest: str) -> Path:
        return self.home.models() / digest


def refuse_unless_passed(gate: Gate) -> None:
    """Raise Refused, with every check that failed, for a version that the gate does not let through."""
    failed = [check for check in gate.checks if not check.passed]
    if gate.passed and not failed:
        return
    lines = "; ".join(f"{check.name}: {check.text}" for check in failed)
    verdict = f"does not pass the gate ({lines or 'it says no'})"
    way_out = next((check.way_out for check in failed if check.way_out), "evaluate it, or deploy another")
    raise Refused(f"version {full(gate.version)}", "", verdict, way_out)


def full(ref: VersionRef) -> str:
    """Return ``project/name@version``."""
    return f"{ref.name}@{ref.version}"
