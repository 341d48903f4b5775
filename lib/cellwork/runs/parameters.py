"""Parameters of a notebook: names and values are checked before anything starts, because papermill writes names into code as they are.

Only what the cell tagged `parameters` assigns can be set. The cell is read with Python's own parser and never executed.
"""

from __future__ import annotations

import ast
import io
import keyword
import math
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from cellwork.errors import BadInput, near_miss

Notebook = Mapping[str, Any]
"""A notebook of format 4 as decoded JSON."""

MOST_DEPTH = 20
MOST_BYTES = 1_000_000
NAMED = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, tokenize.TokenError)
"""What Python's own parser raises over text that is no code, or too much of it."""


class Language(msgspec.Struct):
    language: str | None = None
    name: str | None = None


class Metadata(msgspec.Struct):
    kernelspec: Language | None = None
    language_info: Language | None = None


class Cell(msgspec.Struct):
    metadata: dict[str, Any] | None = None
    source: str | list[str] | None = None


class Shape(msgspec.Struct):
    """What is relied on in a notebook, whoever sent it."""

    nbformat: Literal[4]
    cells: list[Cell]
    metadata: Metadata | None = None


@dataclass(frozen=True)
class Parameter:
    """One assignment of the parameters cell. `type` is its annotation, else its type comment, else the type of its default, else empty."""

    name: str
    type: str
    default: str
    """The default's source text."""
    help: str = ""


def read(text: str | bytes, name: str = "notebook") -> dict[str, Any]:
    """Return the notebook in `text`; raises BadInput if it is not a Python notebook of format 4."""
    try:
        notebook: dict[str, Any] = msgspec.json.decode(text)
        metadata = msgspec.convert(notebook, Shape).metadata or Metadata()
    except msgspec.ValidationError as error:
        raise BadInput(
            "notebook", name, f"is not a notebook of format 4: {error}", "save it in JupyterLab again"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput("notebook", name, f"is not JSON: {error}", "save it in JupyterLab again") from None
    language = (metadata.kernelspec and metadata.kernelspec.language) or (
        metadata.language_info and metadata.language_info.name
    )
    if language and language.lower() != "python":
        raise BadInput("notebook", name, f"is written in {language}", "only Python notebooks can be run")
    return notebook


def declared(notebook: Notebook) -> dict[str, Parameter]:
    """Return the parameters of `notebook` by name; none if it has no cell tagged ``parameters``."""
    cell = next((c for c in notebook["cells"] if _is_tagged(c)), None)
    if cell is None:
        return {}
    source = cell.get("source") or ""
    text = source if isinstance(source, str) else "".join(source)
    text = re.sub(r"(?m)^[ \t]*[%!].*$", "", text)
    try:
        tree, comments = ast.parse(text), _comments(text)
        return {p.name: p for statement in tree.body for p in _parameters(statement, comments)}
    except UNREADABLE as error:
        line, why = (error.lineno, error.msg) if isinstance(error, SyntaxError) else ("", error)
        raise BadInput(
            "parameters cell",
            f"line {line}" if line else "",
            f"is not Python: {why}",
            "mend the cell tagged 'parameters'",
        ) from None


def _is_tagged(cell: Mapping[str, Any]) -> bool:
    tags = (cell.get("metadata") or {}).get("tags")
    return isinstance(tags, list) and "parameters" in tags


def _comments(text: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _parameters(statement: ast.stmt, comments: Mapping[int, str]) -> Iterator[Parameter]:
    """Yield what one statement assigns: ``x: int = 3  # help`` or ``x = 3  # type: int help``."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        targets, value, annotation = [statement.target], statement.value, _annotation(statement.annotation)
    elif isinstance(statement, ast.Assign):
        targets = [target for target in statement.targets if isinstance(target, ast.Name)]
        value, annotation = statement.value, ""
    else:
        return
    match = re.fullmatch(r"(?:type:\s*(\S+)\s*)?(.*)", comments.get(statement.end_lineno or 0, ""))
    comment, text = (match[1] or "", match[2].strip()) if match else ("", "")
    for target in targets:
        yield Parameter(target.id, annotation or comment or _type_of(value), ast.unparse(value), text)


def _annotation(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def _type_of(value: ast.expr) -> str:
    try:
        kind = type(ast.literal_eval(value)).__name__
    except UNREADABLE:
        return ""
    return kind if kind in NAMED else ""


def check(
    notebook: Notebook, given: Mapping[str, Any], name: str = "notebook", later: Collection[str] = ()
) -> dict[str, Any]:
    """Return `given` if each name is a parameter of `notebook` and each value is JSON of its type; of those that come `later`, the names.

    Raises
    ------
    BadInput
        A name that is no identifier or not declared (with the near miss), or a value of another type. The first one is named.
    """
    known = declared(notebook) if given or later else {}
    for key in (*given, *later):
        _check_name(key, known, name)
    for key, value in given.items():
        _check_json(value, key)
        if not fits(value, known[key].type):
            raise BadInput(
                f"parameter {key}",
                _short(value),
                f"is not of type {known[key].type}",
                f"its default is {known[key].default}",
            )
    if given and len(msgspec.json.encode(given)) > MOST_BYTES:
        raise BadInput(
            "parameters",
            f"of {name}",
            f"are over {MOST_BYTES:,} bytes",
            "hand over a name or an id, and read the data in the notebook",
        )
    return dict(given)


def _check_name(key: Any, known: Mapping[str, Parameter], name: str) -> None:
    if not isinstance(key, str) or not key.isidentifier() or keyword.iskeyword(key):
        raise BadInput("parameter", str(key)[:80], "is not a name", "use the names of the cell tagged 'parameters'")
    if not known:
        raise BadInput(
            f"notebook {name!r}",
            "",
            f"has no cell tagged 'parameters', so {key!r} can't be set",
            "add the tag to the cell that assigns it",
        )
    if key not in known:
        raise BadInput(f"parameter of {name}", key, "is unknown", near_miss(key, known))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _check_json(value: Any, key: str, depth: int = 0) -> None:
    if depth > MOST_DEPTH:
        raise BadInput("parameter", key, f"is nested deeper than {MOST_DEPTH}", "flatten it")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"parameter {key}", value, "is not JSON", "leave it out, or use None for a missing number")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadInput(f"parameter {key}", ascii(value)[:80], "is not text", "send valid Unicode") from None
    elif isinstance(value, dict) and all(isinstance(k, str) for k in value):
        for item in (*value, *value.values()):
            _check_json(item, key, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, key, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float):
        raise BadInput(
            f"parameter {key}",
            _short(value),
            f"is a {type(value).__name__}, which is not JSON",
            "use text, numbers, true, false, null, lists and objects with text keys",
        )


def fits(value: Any, type_name: str) -> bool:
    """Say whether the JSON `value` is of the type written as `type_name`; a type that JSON does not know takes everything."""
    try:
        return _fits(value, ast.parse(type_name, mode="eval").body) if type_name else True
    except UNREADABLE:
        return True


def _fits(value: Any, node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return _fits(value, ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else value is None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _fits(value, node.left) or _fits(value, node.right)
    if isinstance(node, ast.Subscript):
        return _fits_generic(value, ast.unparse(node.value).lower().removeprefix("typing."), _arguments(node.slice))
    if isinstance(node, ast.Name) and node.id.lower() in NAMED:
        kind = node.id.lower()
        return isinstance(value, NAMED[kind]) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
    return True


def _arguments(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _fits_generic(value: Any, kind: str, arguments: list[ast.expr]) -> bool:
    if not arguments:
        return True
    if kind == "optional":
        return value is None or _fits(value, arguments[0])
    if kind == "union":
        return any(_fits(value, argument) for argument in arguments)
    if kind == "literal":
        return any(isinstance(a, ast.Constant) and a.value == value and type(a.value) is type(value) for a in arguments)
    if kind == "list":
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if kind == "dict":
        return isinstance(value, dict) and all(_fits(item, arguments[-1]) for item in value.values())
    return True


def from_text(text: str, parameter: Parameter | None) -> Any:
    """Return the value that `text` from a command line means: text stays text for a text parameter, else JSON or Python's words, else text."""
    if parameter is not None and parameter.type == "str":
        return text
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def from_yaml(text: str, subject: str = "YAML") -> dict[str, Any]:
    """Return the mapping in `text`; words such as `on` and `no`, and dates, stay the text they are written as.

    Raises
    ------
    BadInput
        It is not YAML (with the line), or no mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Without YAML 1.1's surprises."""

    surprises = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in surprises]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
    try:
        content = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(subject, place, f"is not YAML: {getattr(error, 'problem', error)}", "mend it") from None
    if not isinstance(content, dict):
        raise BadInput(subject, _short(content), "is not a mapping", "write `name: value` lines")
    return content
