"""Would it run alone? What a notebook needs that only its author's session has, found by reading it.

The reading is Python's own (`ast`, `symtable` rules by hand): which names a cell takes that no cell above gives, which paths
are one machine's, which packages are not pinned, what looks like a secret. Only a dry run on a clean kernel proves more.
"""

from __future__ import annotations

import ast
import builtins
import functools
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cellwork.runs import resume
from cellwork.wire import Struct

Kind = Literal["order", "name", "path", "import", "secret", "syntax"]
GIVEN = {*dir(builtins), "get_ipython", "display", "In", "Out", "_", "__", "___", "__file__", "__name__", "__doc__"}
ABSOLUTE = re.compile(r"(?:/(?:home|Users|root|mnt|media|tmp|data|scratch|srv|opt)/|[A-Za-z]:\\|~/|\\\\\w)[^\s'\"]*")
TOKENS = re.compile(
    r"(AKIA[0-9A-Z]{16}|gh[pousr]_\w{30,}|xox[abp]-[\w-]{10,}|sk-[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY|\w+://[^/\s:@]+:[^/\s@]+@)"
)
SECRET_NAME = re.compile(r"(?i)(password|passwd|secret|token|api_?key|access_?key|private_?key)")
HARMLESS = re.compile(r"(?i)|<.*>|x+|\*+|changeme|none|null|your[-_ ].*|\$\{.*\}|%.*%")


class Finding(Struct):
    cell: int
    """As runs count; 0 is the notebook as a whole."""
    kind: Kind
    subject: str
    verdict: str
    way_out: str


def check(
    notebook: Mapping[str, Any], *, pinned: frozenset[str] | None = None, beside: Path | None = None
) -> list[Finding]:
    """Return what in `notebook` would not do in a run, by cell.

    Parameters
    ----------
    pinned
        Distributions whose version the project fixes; without it imports are held against what is installed here only.
    beside
        The notebook's folder: modules in it travel along.
    """
    cells = [cell for cell in notebook["cells"] if resume.counted(cell)]
    trees = [_tree(resume.source(cell)) for cell in cells]
    found = [*_order(cells)]
    gives = [set(_gives(tree)) if tree else set() for tree in trees]
    known = set(GIVEN)
    for number, tree in enumerate(trees, start=1):
        if tree is None:
            found.append(
                Finding(
                    cell=number,
                    kind="syntax",
                    subject="",
                    verdict="is not Python",
                    way_out="mend it; a run would fail here",
                )
            )
            continue
        found += _names(number, tree, known, gives)
        known |= gives[number - 1]
        found += _texts(number, tree)
        found += _imports(number, tree, pinned, beside)
    return sorted(found, key=lambda finding: (finding.cell, finding.kind))


def _tree(source: str) -> ast.Module | None:
    """Return the cell as Python, magics left out; None if it is none."""
    if source.lstrip().startswith("%%"):
        return ast.Module(body=[], type_ignores=[])
    lines = [
        re.sub(r"^(\s*)[%!].*$", r"\1pass", re.sub(r"=\s*[%!].*$", "= None", line)) for line in source.splitlines()
    ]
    try:
        return ast.parse(re.sub(r"(?m)^(\s*)([\w.\[\]]+)\?{1,2}\s*$", r"\1pass", "\n".join(lines)))
    except SyntaxError:
        return None


def _order(cells: list[Any]) -> Iterator[Finding]:
    """Cells that were executed in another order than they stand in."""
    counts = [(number, cell.get("execution_count")) for number, cell in enumerate(cells, start=1)]
    ran = [(number, count) for number, count in counts if count]
    highest = 0
    for number, count in ran:
        if count < highest:
            verdict = f"ran as [{count}], before a cell above it ([{highest}])"
            yield Finding(
                cell=number,
                kind="order",
                subject=f"[{count}]",
                verdict=verdict,
                way_out="restart the kernel and run all cells",
            )
        highest = max(highest, count)


def _gives(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a cell leaves behind at its top level."""
    for node in _here(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names


def _here(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of the top level: not the insides of functions, classes, lambdas and comprehensions."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(
            node,
            ast.FunctionDef
            | ast.AsyncFunctionDef
            | ast.ClassDef
            | ast.Lambda
            | ast.ListComp
            | ast.SetComp
            | ast.DictComp
            | ast.GeneratorExp,
        ):
            yield from _here(node)


def _takes(node: ast.AST, local: frozenset[str]) -> Iterator[str]:
    """Yield the names that `node` reads and that are not its own."""
    if isinstance(node, ast.Name):
        if not isinstance(node.ctx, ast.Store) and node.id not in local:
            yield node.id
        return
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id not in local:
        yield node.target.id
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        of = node.args
        own = {a.arg for a in (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg) if a}
        body = node.body if isinstance(node.body, list) else [node.body]
        own |= {
            name
            for child in body
            for name in _gives(ast.Module(body=[child], type_ignores=[]) if isinstance(child, ast.stmt) else child)
        }
        local = local | own | ({node.name} if not isinstance(node, ast.Lambda) else set())
    elif isinstance(node, ast.ClassDef):
        local = local | set(_gives(ast.Module(body=node.body, type_ignores=[]))) | {node.name}
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        local = local | {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
    for child in ast.iter_child_nodes(node):
        yield from _takes(child, local)


def _names(number: int, tree: ast.Module, known: set[str], gives: list[set[str]]) -> Iterator[Finding]:
    """Names that a cell takes and that nothing above gives. What a function takes may come later than its definition."""
    so_far = set(known)
    told: set[str] = set()
    for statement in tree.body:
        later = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        mine = set(_gives(ast.Module(body=[statement], type_ignores=[])))
        inside = mine if not isinstance(statement, ast.Assign | ast.AugAssign | ast.Expr) else set()
        for name in _takes(statement, frozenset()):
            if name in so_far or name in inside or name in told:
                continue
            below = next((k for k, given in enumerate(gives, start=1) if name in given and k >= number), 0)
            if later and below:
                continue
            told.add(name)
            if below > number:
                yield Finding(
                    cell=number,
                    kind="order",
                    subject=name,
                    verdict=f"is made in cell {below}, below",
                    way_out=f"move cell {below} above cell {number}",
                )
            elif not below or below == number:
                yield Finding(
                    cell=number,
                    kind="name",
                    subject=name,
                    verdict="is made in no cell above: only a live kernel has it",
                    way_out="make it in a cell, or a parameter",
                )
        so_far |= mine


def _texts(number: int, tree: ast.Module) -> Iterator[Finding]:
    """Paths of one machine, and what looks like a secret."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := TOKENS.search(node.value):
                yield _secret(number, match[0][:6] + "…", "looks like a credential")
            elif ABSOLUTE.match(node.value):
                yield Finding(
                    cell=number,
                    kind="path",
                    subject=node.value[:80],
                    verdict="is a path of this machine",
                    way_out="make it relative to the notebook, or a parameter",
                )
        named = (
            [(t.id, node.value) for t in node.targets if isinstance(t, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
        if isinstance(node, ast.keyword) and node.arg:
            named = [(node.arg, node.value)]
        for name, value in named:
            if (
                SECRET_NAME.search(name)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
                and _secret_like(value.value)
            ):
                yield _secret(number, name, "is written out")


def _secret(number: int, subject: str, verdict: str) -> Finding:
    way_out = (
        'keep it with `cellwork secret set`, and write secret("name"); then change it where it is used, for it was here'
    )
    return Finding(cell=number, kind="secret", subject=subject, verdict=verdict, way_out=way_out)


def _secret_like(text: str) -> bool:
    if len(text) < 6 or HARMLESS.fullmatch(text) or " " in text.strip():
        return False
    share = [count / len(text) for count in Counter(text).values()]
    return -sum(p * math.log2(p) for p in share) > 1.5


def _imports(number: int, tree: ast.Module, pinned: frozenset[str] | None, beside: Path | None) -> Iterator[Finding]:
    """Imports of what is not installed, or not pinned by the project."""
    for node in ast.walk(tree):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            else []
        )
        for name in {name.partition(".")[0] for name in names}:
            if name in sys.stdlib_module_names or name.startswith("cellwork"):
                continue
            if beside and ((beside / f"{name}.py").is_file() or (beside / name).is_dir()):
                continue
            distributions = {d.lower().replace("_", "-") for d in _installed().get(name, [])}
            if not distributions:
                yield Finding(
                    cell=number,
                    kind="import",
                    subject=name,
                    verdict="is not installed here",
                    way_out="install it, or put the module beside the notebook",
                )
            elif pinned is not None and not distributions & pinned:
                yield Finding(
                    cell=number,
                    kind="import",
                    subject=name,
                    verdict="is not pinned by the project",
                    way_out=f"write {sorted(distributions)[0]}==<version> into requirements.txt",
                )


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    """Return the distributions that each importable name comes from; reading them all takes a while."""
    return metadata.packages_distributions()


def pins(folder: Path) -> frozenset[str] | None:
    """Return the distributions that the project's requirements.txt or constraints.txt fixes; None if it has neither."""
    files = [folder / name for name in ("requirements.txt", "constraints.txt") if (folder / name).is_file()]
    if not files:
        return None
    lines = [line for file in files for line in file.read_text().splitlines()]
    return frozenset(
        match[1].lower().replace("_", "-") for line in lines if (match := re.match(r"([\w.-]+)(\[.*\])?\s*==", line))
    )
