"""What differs between two runs: parameters, code, environment, input batches, outputs, seconds a cell; as data, as text, as a page.

Outputs are compared by what they are: a number by its difference, a table by its cells, a plot by its bytes (shown side by side).
Cells are paired by their source, in order; what has no partner was added or removed.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork.runs import resume
from cellwork.wire import Struct
from cellwork.wire.jobs import Run

if TYPE_CHECKING:
    from cellwork.client import Client

NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?")
ROW = re.compile(r"(?s)<tr.*?</tr>")
CELL = re.compile(r"(?s)<t[hd][^>]*>(.*?)</t[hd]>")
TAGS = re.compile(r"<[^>]+>")
MOST_CHANGES = 50


class Change(Struct):
    """One thing that is not the same: what, in which cell (0 none), as it is in A and in B."""

    what: str
    name: str
    a: str
    b: str
    cell: int = 0


class Seconds(Struct):
    cell: int
    a: float | None
    b: float | None


class Diff(Struct):
    a: str
    b: str
    changes: list[Change]
    code: list[str]
    """A unified diff of the cells' sources."""
    seconds: list[Seconds]
    plots: list[tuple[int, str, str]]
    """Cells whose plots differ, with the PNG of each run in base64."""

    @property
    def same(self) -> bool:
        return not (self.changes or self.code or self.plots)


def of(client: Client, a: str, b: str) -> Diff:
    """Return what differs between two runs of the platform."""
    runs = client.jobs.run(a), client.jobs.run(b)
    pages = msgspec.json.decode(client.jobs.notebook(a)), msgspec.json.decode(client.jobs.notebook(b))
    return compare(*runs, pages, (_batches(client, a), _batches(client, b)))


def _batches(client: Client, run: str) -> list[str]:
    return sorted({edge.to for edge in client.records.edges(run) if edge.from_ == run and edge.to.startswith("bat_")})


def compare(a: Run, b: Run, pages: tuple[Mapping[str, Any], Mapping[str, Any]], batches: tuple[Sequence[str], Sequence[str]] = ((), ())) -> Diff:  # fmt: skip
    """Return what differs between the runs `a` and `b`, whose executed notebooks are `pages` and whose input is `batches`."""
    left, right = (_cells(page) for page in pages)
    changes = [*_mappings("parameter", a.parameters, b.parameters), *_about(a, b), *_environment(*pages)]
    changes += [Change(what="batch", name=name, a="used", b="") for name in batches[0] if name not in batches[1]]
    changes += [Change(what="batch", name=name, a="", b="used") for name in batches[1] if name not in batches[0]]
    plots: list[tuple[int, str, str]] = []
    seconds = []
    for one, other in _pairs(left, right):
        number = (one if one is not None else other or 0) + 1
        seconds.append(Seconds(cell=number, a=_seconds(left, one), b=_seconds(right, other)))
        if one is not None and other is not None:
            changes += _outputs(number, left[one], right[other])
            plots += _plots(number, left[one], right[other])
    one_source, other_source = (
        [line for cell in cells for line in [*resume.source(cell).splitlines(), ""]] for cells in (left, right)
    )
    code = list(difflib.unified_diff(one_source, other_source, a.id, b.id, lineterm="", n=2))
    return Diff(a=a.id, b=b.id, changes=changes, code=code, seconds=seconds, plots=plots)


def _cells(page: Mapping[str, Any]) -> list[Any]:
    cells = resume.without_banners(page)["cells"]
    return [cell for cell in cells if resume.counted(cell) and resume.INJECTED not in resume.tags(cell)]


def _pairs(left: list[Any], right: list[Any]) -> Iterator[tuple[int | None, int | None]]:
    """Yield pairs of cells; those whose source changed in place are paired too."""
    matcher = difflib.SequenceMatcher(
        None, [resume.source(c) for c in left], [resume.source(c) for c in right], autojunk=False
    )
    for _, i, j, k, m in matcher.get_opcodes():
        for n in range(max(j - i, m - k)):
            yield (i + n if i + n < j else None), (k + n if k + n < m else None)


def _mappings(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted({*a, *b}):
        if a.get(name) != b.get(name) or (name in a) != (name in b):
            yield Change(
                what=what, name=name, a=repr(a[name]) if name in a else "", b=repr(b[name]) if name in b else ""
            )


def _about(a: Run, b: Run) -> Iterator[Change]:
    for name in ("state", "notebook", "principal", "job"):
        if getattr(a, name) != getattr(b, name):
            yield Change(what="run", name=name, a=str(getattr(a, name)), b=str(getattr(b, name)))


def _environment(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    told = [
        {"python": ((page.get("metadata") or {}).get("language_info") or {}).get("version", ""), **((page.get("metadata") or {}).get("cellwork") or {}).get("packages", {})}
        for page in (a, b)
    ]  # fmt: skip
    yield from _mappings("environment", *told)


def _seconds(cells: list[Any], at: int | None) -> float | None:
    about = (cells[at].get("metadata") or {}).get("papermill") or {} if at is not None else {}
    return about.get("duration")


def _texts(cell: Any) -> list[tuple[str, str]]:
    """Return (kind, text) of a cell's outputs that are text or tables."""
    found = []
    for output in cell.get("outputs", []):
        data = output.get("data") or {}
        if "text/html" in data and "<table" in _text(data["text/html"]):
            found.append(("table", _text(data["text/html"])))
        elif output.get("output_type") == "error":
            found.append(("error", f"{output.get('ename')}: {output.get('evalue')}"))
        elif "text" in output:
            found.append(("text", _text(output["text"])))
        elif "text/plain" in data and "image/png" not in data:
            found.append(("text", _text(data["text/plain"])))
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "".join(value or [])


def _outputs(number: int, a: Any, b: Any) -> Iterator[Change]:
    left, right = _texts(a), _texts(b)
    for k in range(max(len(left), len(right))):
        one, other = (texts[k] if k < len(texts) else ("", "") for texts in (left, right))
        if one == other:
            continue
        if one[0] == other[0] == "table":
            yield from _tables(number, one[1], other[1])
        elif one[0] == other[0] == "text":
            yield from _scalars(number, one[1], other[1])
        else:
            yield Change(what="output", name=one[0] or other[0], a=_short(one[1]), b=_short(other[1]), cell=number)


def _scalars(number: int, a: str, b: str) -> Iterator[Change]:
    """Where two texts differ only in numbers, say which; else show the lines that differ."""
    if NUMBER.sub("#", a) == NUMBER.sub("#", b):
        words = re.split(NUMBER, a)
        for k, (one, other) in enumerate(zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)):
            if one != other:
                yield Change(what="number", name=" ".join(words[k].split()[-3:]), a=one, b=other, cell=number)
        return
    for one, other in _lines(a.splitlines(), b.splitlines()):
        yield Change(what="output", name="text", a=_short(one), b=_short(other), cell=number)


def _lines(a: list[str], b: list[str]) -> Iterator[tuple[str, str]]:
    for _, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if a[i:j] != b[k:m]:
            yield "\n".join(a[i:j]), "\n".join(b[k:m])


def _tables(number: int, a: str, b: str) -> Iterator[Change]:
    rows = [
        [[TAGS.sub("", cell).strip() for cell in CELL.findall(row)] for row in ROW.findall(text)] for text in (a, b)
    ]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        sizes = [f"{len(table) - 1} rows x {max(map(len, table), default=0)}" for table in rows]
        yield Change(what="table", name="size", a=sizes[0], b=sizes[1], cell=number)
        return
    head = rows[0][0] if rows[0] else []
    told = 0
    for one, other in zip(*rows, strict=True):
        for k, (x, y) in enumerate(zip(one, other, strict=True)):
            if x != y and told < MOST_CHANGES:
                told += 1
                column = head[k] if k < len(head) else str(k)
                yield Change(what="table", name=f"{one[0]}, {column}", a=x, b=y, cell=number)


def _plots(number: int, a: Any, b: Any) -> Iterator[tuple[int, str, str]]:
    pictures = [
        [_text(o["data"]["image/png"]).replace("\n", "") for o in cell.get("outputs", []) if "image/png" in (o.get("data") or {})] for cell in (a, b)
    ]  # fmt: skip
    for k in range(max(map(len, pictures))):
        one, other = (found[k] if k < len(found) else "" for found in pictures)
        if one != other:
            yield number, one, other


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:299]}…"


def as_text(diff: Diff) -> str:
    """Return the differences as lines for a terminal."""
    lines = [f"A  {diff.a}", f"B  {diff.b}"]
    if diff.same:
        lines.append("nothing differs but the time")
    for change in diff.changes:
        where = f"cell {change.cell}: " if change.cell else ""
        lines.append(f"{where}{change.what} {change.name}: {change.a or '-'} -> {change.b or '-'}")
    lines += diff.code
    lines += [f"cell {number}: its plot differs (look at the page: --html)" for number, _, _ in diff.plots]
    for row in slowest(diff):
        lines.append(f"cell {row.cell}: {_told(row.a)} -> {_told(row.b)}")
    return "\n".join(lines)


def slowest(diff: Diff, count: int = 5) -> list[Seconds]:
    """Return the cells whose time changed most, if by more than a tenth of a second."""
    moved = [row for row in diff.seconds if abs((row.a or 0) - (row.b or 0)) > 0.1]
    return sorted(moved, key=lambda row: -abs((row.a or 0) - (row.b or 0)))[:count]


def _told(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def as_page(diff: Diff) -> str:
    """Return the differences as one HTML page that needs nothing from elsewhere; all that runs wrote is escaped."""
    rows = "".join(
        f"<tr><td>{c.cell or ''}</td><td>{html.escape(c.what)}</td><td>{html.escape(c.name)}</td><td><pre>{html.escape(c.a)}</pre></td><td><pre>{html.escape(c.b)}</pre></td></tr>"
        for c in diff.changes
    )
    code = "".join(f'<div class="{_side(line)}">{html.escape(line) or "&nbsp;"}</div>' for line in diff.code)
    plots = "".join(f"<h3>Cell {n}</h3><div class=two>{_picture(a)}{_picture(b)}</div>" for n, a, b in diff.plots)
    times = "".join(f"<tr><td>{s.cell}</td><td>{_told(s.a)}</td><td>{_told(s.b)}</td></tr>" for s in diff.seconds)
    return PAGE.format(
        a=html.escape(diff.a), b=html.escape(diff.b), none="<p>Nothing differs but the time.</p>" if diff.same else "",
        changes=f"<h2>What differs</h2><table><tr><th>cell<th>what<th>name<th>A<th>B</tr>{rows}</table>" if rows else "",
        code=f"<h2>Code</h2><div class=code>{code}</div>" if code else "", plots=f"<h2>Plots</h2>{plots}" if plots else "", times=times,
    )  # fmt: skip


def _side(line: str) -> str:
    return {"+": "added", "-": "removed"}.get(line[:1], "")


def _picture(data: str) -> str:
    safe = re.fullmatch(r"[A-Za-z0-9+/=]+", data)
    return f'<img src="data:image/png;base64,{data}">' if safe else "<span>none</span>"


PAGE = """<!doctype html>
<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{a} and {b}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: left; vertical-align: top; }}
pre {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }} .code {{ font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; }}
.added {{ background: #e6ffec; }} .removed {{ background: #ffebe9; }} .two {{ display: flex; gap: 1rem; }} .two > * {{ flex: 1; max-width: 50%; }}
</style>
<h1>Two runs</h1><p>A {a}<br>B {b}</p>{none}{changes}{code}{plots}
<h2>Seconds a cell</h2><table><tr><th>cell<th>A<th>B</tr>{times}</table>
"""
