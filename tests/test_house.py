"""The rules of the house, read from the code: who may import whom, no cycles, light imports, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"cellwork": ROOT / "lib", "cellwork_hub": ROOT / "hub", "cellwork_jupyter": ROOT / "extensions"}
MAY_IMPORT = {  # the table of the design: ours that each package may import
    "cellwork": set(),
    "cellwork.ui": {"cellwork"},
    "cellwork_jupyter": {"cellwork", "cellwork.ui"},
    "cellwork_hub": {"cellwork"},
}
NEVER_IN_LIB = {"jupyterhub", "tornado", "IPython"}
HEAVY = {
    "pandas",
    "sklearn",
    "mlflow",
    "feast",
    "dask",
    "distributed",
    "papermill",
    "polars",
    "pyarrow",
    "duckdb",
    "sqlalchemy",
    "matplotlib",
    "ipywidgets",
    "deltalake",
    "scipy",
}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, root in SOURCES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that `module` names in an import, in functions too, but not under TYPE_CHECKING."""
    tree = ast.parse(modules()[module].read_text())
    return frozenset(name for node in _runtime_nodes(tree) for name in _names(node, module))


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from _runtime_nodes(child)


def _names(node: ast.AST, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        generated = package_of(module) == "cellwork.ui"  # nbdev writes relative imports
        assert node.level == 0 or generated, f"{module} imports relatively"
        base = ".".join(
            [*(module.split(".")[: -node.level] if node.level else []), *([node.module] if node.module else [])]
        )
        known = modules()
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full in known else base


def package_of(module: str) -> str:
    return "cellwork.ui" if module.startswith("cellwork.ui.") or module == "cellwork.ui" else module.split(".")[0]


def test_each_package_imports_only_those_of_ours_that_the_table_allows() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        for name in imports(module)
        if (other := package_of(name)) in MAY_IMPORT
        and other != package_of(module)
        and other not in MAY_IMPORT[package_of(module)]
    ]
    assert wrong == []


def test_the_library_never_imports_the_hub_tornado_or_ipython_and_widgets_only_in_ui() -> None:
    wrong = []
    for module in modules():
        if module.split(".")[0] != "cellwork":
            continue
        banned = NEVER_IN_LIB if package_of(module) == "cellwork.ui" else NEVER_IN_LIB | {"ipywidgets"}
        wrong += [
            f"{module} imports {name}"
            for name in imports(module)
            if name.split(".")[0] in banned - ({"IPython"} if package_of(module) == "cellwork.ui" else set())
        ]
    assert wrong == []


def test_only_config_and_auth_know_jupyterhub() -> None:
    wrong = [
        module
        for module in modules()
        if module.startswith("cellwork_hub")
        and not module.startswith(("cellwork_hub.config", "cellwork_hub.auth"))
        and any(name.split(".")[0] == "jupyterhub" for name in imports(module))
    ]
    assert wrong == []


def test_there_is_no_import_cycle_even_through_functions() -> None:
    graph = {module: {name for name in imports(module) if name in modules() and name != module} for module in modules()}
    assert _cycle(graph) is None


def _cycle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for following in sorted(graph[node]):
            if found := visit(following, [*path, node]):
                return found
        done.add(node)
        return None

    for start in sorted(graph):
        if found := visit(start, []):
            return found
    return None


def test_the_cycle_finder_finds_a_cycle() -> None:
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def light_modules() -> list[str]:
    return [
        m
        for m in modules()
        if m.split(".")[0] == "cellwork" and package_of(m) != "cellwork.ui" and not m.endswith("__main__")
    ]


def test_importing_the_library_loads_nothing_heavy() -> None:
    """Each module in one process: what is heavy is imported where it is used. Plugins of a library import it by nature."""
    names = [m for m in light_modules() if not m.startswith(("cellwork.features.feast", "cellwork.runs.plugin"))]
    code = f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\nprint(sorted(set(sys.modules) & {HEAVY!r}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("package", list(SOURCES))
def test_modules_stay_small(package: str) -> None:
    """Hardly ever over 400 lines; generated modules aside."""
    long = {
        module: lines
        for module, path in modules().items()
        if package_of(module) == package and (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_every_module_says_its_rules_in_a_docstring() -> None:
    missing = [
        m
        for m, path in modules().items()
        if package_of(m) != "cellwork.ui"
        and not m.endswith("__main__")
        and path.read_text().strip()
        and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert missing == []


def test_no_two_test_modules_have_one_name() -> None:
    """They stand in folders that are no packages, so pytest imports each by its name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_what_the_benches_take_from_this_project_is_there() -> None:
    """They run seldom: a name that moved would be missed when a figure is wanted."""
    places = {**modules(), **{path.stem: path for path in (ROOT / "tests").rglob("*.py")}}
    places |= {path.stem: path for path in (ROOT / "bench").glob("*.py")}
    missing, seen = [], 0
    for bench in sorted((ROOT / "bench").glob("*.py")):
        for node in ast.walk(ast.parse(bench.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in places:
                known = _defined(places[node.module])
                wanted = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in places}
                seen += len(wanted)
                missing += [
                    f"{bench.name}: {node.module}.{name}" for name in wanted - known if "__getattr__" not in known
                ]
    assert missing == []
    assert seen > 50


@cache
def _defined(path: Path) -> frozenset[str]:
    """Return the names that a module has at its top, also under conditions."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text()).body)
    for node in waiting:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            waiting += ast.iter_child_nodes(node)
    return frozenset(names)
