"""`cellwork endpoint canary|shadow|pin|remove|rollout|stop`: versions beside the live one; `input`: its rule for strange values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from cellwork import clock, serving
from cellwork.cli import show
from cellwork.client import connect
from cellwork.errors import BadInput
from cellwork.wire.endpoints import Arm, ArmWish, InputRule, InputWish, RolloutWish, RouteTable

F = TypeVar("F", bound=Callable[..., Any])


STATES = {"promoted": "it is live", "back": "it was taken out", "stopped": "it was stopped"}


def _of_a_version(command: F) -> F:
    """Add what every change of a version beside the live one takes."""
    for option in (
        show.as_json,
        click.option("--reason", default="", help="Why; it stands in the audit."),
        click.option("--revision", type=int, help="The revision you saw; if it changed since, nothing happens."),
        click.option("--model", default="", help="Full name of the model; default the endpoint's own."),
        click.argument("version", type=int),
        click.argument("name", metavar="PROJECT/NAME"),
    ):
        command = option(command)
    return command


@click.command()
@_of_a_version
@click.option("--weight", default="0", metavar="SHARE", help="Share of units, such as 10% or 0.1.")
@click.option("--unit", "units", multiple=True, help="This unit gets it whatever the weight; may be repeated.")
@click.option("--when", "when", multiple=True, metavar="NAME=A,B", help="Requests with one of these values get it.")
@click.option("--salt", help="Another salt draws the units anew.")
def canary(
    name: str, version: int, weight: str, units: tuple[str, ...], when: tuple[str, ...], salt: str | None, json: bool, **more: Any
) -> None:  # fmt: skip
    """Let a version answer a part of the requests; a unit keeps its version while the weight grows.

    Example: cellwork endpoint canary flights/delay 3 --weight 10% --when carrier=UA,AA
    """
    wish = ArmWish(weight=share(weight), units=[*units], when=conditions(when), salt=salt, **more)
    changed(serving.beside(name, version, wish), json)


@click.command()
@_of_a_version
def shadow(name: str, version: int, json: bool, **more: Any) -> None:
    """Let a version score in the background what the endpoint answers; its scores are in the log only.

    Example: cellwork endpoint shadow flights/delay 3
    """
    changed(serving.beside(name, version, ArmWish(shadow=True, **more)), json)


@click.command()
@_of_a_version
def pin(name: str, version: int, json: bool, **more: Any) -> None:
    """Keep a version warm for requests that name it; deploying it later takes no time (blue-green).

    Example: cellwork endpoint pin flights/delay 3
    """
    changed(serving.beside(name, version, ArmWish(**more)), json)


@click.command()
@_of_a_version
def remove(name: str, version: int, json: bool, **more: Any) -> None:
    """Take a canary, shadow or pinned version out; the live version answers in its place.

    Example: cellwork endpoint remove flights/delay 3 --reason "scores too high"
    """
    changed(serving.remove(name, version, **more), json)


@click.command()
@_of_a_version
@click.option("--stages", default="1%,10%,50%,100%", show_default=True, help="Rising shares of units.")
@click.option("--hold", default="10m", show_default=True, help="The least time of a stage, such as 30s or 2h.")
@click.option("--least", default=200, show_default=True, help="The least number of answers in a stage.")
@click.option("--errors", default="1%", show_default=True, help="It may fail this share more than the live version.")
@click.option(
    "--slower", default=2.0, show_default=True, help="Its 95th percentile may be this many times the other's."
)
@click.option("--scores", default=0.2, show_default=True, help="Its scores may lie this far (KS) from the other's.")
def rollout(
    name: str, version: int, stages: str, hold: str, least: int, errors: str, slower: float, scores: float, json: bool, **more: Any
) -> None:  # fmt: skip
    """Bring a version to all requests in stages; it goes on, or back, by itself.

    Example: cellwork endpoint rollout flights/delay 3 --stages 1%,10%,50%,100% --hold 1h
    """
    wish = RolloutWish(
        version=version, stages=[share(part) for part in stages.split(",")], hold_seconds=clock.duration(hold).total_seconds(),
        least=least, errors=share(errors), slower=slower, scores=scores, **more,
    )  # fmt: skip
    changed(serving.roll_out(name, wish), json)


@click.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.option("--reason", default="", help="Why; it stands in the audit.")
@show.as_json
def stop(name: str, reason: str, json: bool) -> None:
    """Stop a rollout and take its version out.

    Example: cellwork endpoint stop flights/delay --reason "the day is over"
    """
    changed(connect().endpoints.stop_rollout(name, reason), json)


@click.command("input")
@click.argument("name", metavar="PROJECT/NAME")
@click.option(
    "--range", "ranges", multiple=True, metavar="NAME=LOW..HIGH", help="What a number may be; may be repeated."
)
@click.option("--known", multiple=True, metavar="NAME=A,B", help="The texts that were seen; may be repeated.")
@click.option("--then", type=click.Choice(["default", "fallback", "refuse"]), default="default", show_default=True,
              help="Take it for none, let the previous version answer, or refuse.")  # fmt: skip
@click.option("--revision", type=int, help="The revision you saw; if it changed since, nothing happens.")
@click.option("--reason", default="", help="Why; it stands in the audit.")
@show.as_json
def input_(
    name: str, ranges: tuple[str, ...], known: tuple[str, ...], then: Any, revision: int | None, reason: str, json: bool
) -> None:
    """Set what becomes of values that are out of range or were never seen; without ranges and texts there is no rule.

    Example: cellwork endpoint input flights/delay --range distance=0..20000 --known carrier=UA,AA --then refuse
    """
    bounds = {column: _bounds(text) for column, text in map(_pair, ranges)}
    rule = InputRule(ranges=bounds, known=conditions(known), then=then) if ranges or known else None
    changed(connect().endpoints.put_input(name, InputWish(rule=rule, revision=revision, reason=reason)), json)


COMMANDS = (canary, shadow, pin, remove, rollout, stop, input_)


def changed(table: RouteTable, json: bool) -> None:
    """Say what a change has made of a route table."""
    if json:
        return show.document(table)
    previous = f"; version {table.previous.version} is at hand" if table.previous else ""
    click.echo(f"{table.endpoint} serves version {table.live.version} (revision {table.revision}){previous}")
    for what, text in beside(table):
        click.echo(f"  {what}: {text}")
    return None


def beside(table: RouteTable) -> list[tuple[str, str]]:
    """Return a line for each version beside the live one."""
    lines = [("canary" if _answers(arm) else "pinned", said(arm)) for arm in table.canary]
    lines += [("shadow", said(arm)) for arm in table.shadow]
    if table.input is not None:
        ruled = ", ".join([*table.input.ranges, *table.input.known])
        lines.append(("input", f"strange values of {ruled}: {table.input.then}"))
    if (rollout := table.rollout) is not None:
        where = (
            f"stage {rollout.stage + 1} of {len(rollout.stages)}"
            if rollout.state == "running"
            else STATES[rollout.state]
        )
        lines.append(("rollout", f"version {rollout.version.version}, {where}: {rollout.said}"))
    return lines


def said(arm: Arm) -> str:
    """Return what an arm answers, in words."""
    parts = [f"{arm.weight:.2%} of units".replace(".00%", "%")] if arm.weight else []
    parts += [f"units {', '.join(arm.units[:5])}{' …' if len(arm.units) > 5 else ''}"] if arm.units else []
    parts += [" and ".join(f"{name} in {', '.join(values)}" for name, values in arm.when.items())] if arm.when else []
    return f"version {arm.version.version}" + (f" answers {'; '.join(parts)}" if parts else "")


def share(text: str) -> float:
    """Return the share that ``10%`` or ``0.1`` says."""
    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        raise BadInput("weight", text, "is not a share", "write 10% or 0.1") from None


def conditions(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the conditions of texts such as ``carrier=UA,AA``."""
    return {name: values.split(",") for name, values in map(_pair, texts)}


def _bounds(text: str) -> list[float]:
    low, _, high = text.partition("..")
    try:
        return [float(low), float(high)]
    except ValueError:
        raise BadInput("range", text, "has no two numbers", "write LOW..HIGH, such as 0..100") from None


def _answers(arm: Arm) -> bool:
    return bool(arm.weight or arm.units or arm.when)


def _pair(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not equals or not name:
        raise BadInput("condition", text, "has no '='", "write name=value or name=one,other")
    return name, values
