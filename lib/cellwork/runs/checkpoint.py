"""What a kernel holds, saved to a folder and put back into another kernel: frames as Parquet, the rest pickled, the rest of the rest named.

It runs inside the run's kernel, with its rights. Functions of the notebook see the names of the kernel they are put back
into, as before. What lives inside modules (an active MLflow run, registered callbacks) and open things (files, connections,
generators, threads) is not saved; `missing` names each and says why, and whatever holds a function that would use one of them.
Random numbers go on where they were, caches of functions are empty.
"""

from __future__ import annotations

import dis
import functools
import io
import random
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

IPYTHON = re.compile(r"In|Out|exit|quit|get_ipython|open|_+|_i+|_i?\d+|_[iod]h|_exit_code|__\w+__")
"""Names that IPython puts into every namespace."""


class Saved(msgspec.Struct):
    """What a checkpoint holds: `frames` by file, and how many `names` in all; `missing` says of each other name why it is not there."""

    names: int = 0
    frames: dict[str, list[str]] = {}
    missing: dict[str, str] = {}


def save(folder: str, namespace: Mapping[str, Any]) -> None:
    """Write what `namespace` holds below `folder`, and the `Saved` about it as ``saved.json``."""
    target = Path(folder)
    target.mkdir(parents=True)
    values = {name: value for name, value in namespace.items() if not IPYTHON.fullmatch(name)}
    saved = Saved()
    rest = dict(values)
    for name, value in values.items():
        if name in rest and _is_frame(value) and _write_frame(value, target / f"{len(saved.frames)}.parquet"):
            same = [other for other, it in rest.items() if it is value]
            saved.frames[f"{len(saved.frames)}.parquet"] = [f"{type(value).__module__.split('.')[0]}", *same]
            rest = {other: it for other, it in rest.items() if it is not value}
    data, saved.missing = _pickled(rest, namespace)
    (target / "rest.pickle").write_bytes(data)
    saved.names = len(values) - len(saved.missing)
    (target / "saved.json").write_bytes(msgspec.json.encode(saved))


def restore(folder: str, namespace: dict[str, Any]) -> None:
    """Put into `namespace` what was saved below `folder`."""
    source = Path(folder)
    saved = msgspec.json.decode((source / "saved.json").read_bytes(), type=Saved)
    rest, numbers, numpy_numbers = _Unpickler(source / "rest.pickle", namespace).load()
    namespace.update(rest)
    for file, (library, *names) in saved.frames.items():
        frame = _read_frame(source / file, library)
        namespace.update(dict.fromkeys(names, frame))
    random.setstate(numbers)
    if numpy_numbers is not None:
        import numpy as np

        np.random.set_state(numpy_numbers)


def _is_frame(value: Any) -> bool:
    return type(value).__name__ == "DataFrame" and type(value).__module__.split(".")[0] in ("polars", "pandas")


def _write_frame(frame: Any, path: Path) -> bool:
    """Return whether `frame` could be written as Parquet; what can't be is pickled."""
    try:
        if type(frame).__module__.startswith("polars"):
            frame.write_parquet(path)
        else:
            frame.to_parquet(path, engine="pyarrow")
            if not frame.dtypes.equals(_read_frame(path, "pandas").dtypes) or frame.attrs:
                raise ValueError
    except Exception:  # whatever Parquet or Arrow says of such a column: it is pickled instead
        path.unlink(missing_ok=True)
        return False
    return True


def _read_frame(path: Path, library: str) -> Any:
    if library == "polars":
        import polars as pl

        return pl.read_parquet(path)
    import pandas as pd

    return pd.read_parquet(path, engine="pyarrow")


def _pickled(values: dict[str, Any], namespace: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return the pickle of all `values` that can be pickled, together so that what they share stays shared; and why not, of the others."""
    numpy = sys.modules.get("numpy")
    numbers = (random.getstate(), numpy.random.get_state() if numpy else None)
    missing: dict[str, str] = {}
    uses: dict[str, set[str]] = {}
    try:
        return _dump((values, *numbers), namespace)[0], missing
    except Exception:  # a value's own pickling may raise anything; which one it was is found out below
        for name, value in values.items():
            try:
                uses[name] = _dump(value, namespace)[1]
            except Exception as error:
                missing[name] = f"{type(value).__name__}: {error}"[:300]
    while lost := {n: used & missing.keys() for n, used in uses.items() if n not in missing and used & missing.keys()}:
        missing |= {name: f"uses {', '.join(sorted(names))}: it is not saved"[:300] for name, names in lost.items()}
    return _dump(({k: v for k, v in values.items() if k not in missing}, *numbers), namespace)[0], missing


def _dump(value: Any, namespace: Mapping[str, Any]) -> tuple[bytes, set[str]]:
    """Return the pickle of `value`, and the names of the notebook that functions in it read when they are called."""
    import cloudpickle

    uses: set[str] = set()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined, unused-ignore]
        """Writes functions of the notebook without a copy of its names: where they are put back, they see those there."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, types.FunctionType) and obj.__globals__ is namespace:
                uses.update(_globals(obj.__code__))
                cells = [_content(cell) for cell in obj.__closure__ or ()]
                state = (cells, obj.__defaults__, obj.__kwdefaults__, obj.__dict__, obj.__annotations__, obj.__qualname__, obj.__doc__)  # fmt: skip
                return _function, (obj.__code__, obj.__name__, len(cells)), state, None, None, _fill
            # of these two pickle would write the name, under which a kernel that has run nothing finds nothing
            if isinstance(obj, functools._lru_cache_wrapper) and obj.__module__ == "__main__":
                return _cached, (obj.__wrapped__, obj.cache_parameters())
            if isinstance(obj, typing.NewType) and obj.__module__ == "__main__":
                return _new_type, (obj.__name__, obj.__supertype__)
            if isinstance(obj, io.IOBase) and not isinstance(obj, io.StringIO | io.BytesIO):
                raise TypeError("an open file can't be put back")  # cloudpickle would read it
            return super().reducer_override(obj)

    stream = io.BytesIO()
    Pickler(stream, protocol=5).dump(value)
    return stream.getvalue(), uses


def _globals(code: types.CodeType) -> Iterator[str]:
    """Yield the names outside it that `code`, or a function within it, reads."""
    for step in dis.get_instructions(code):
        if step.opname.startswith("LOAD_") and ("GLOBAL" in step.opname or "NAME" in step.opname):
            yield step.argval
    for within in code.co_consts:
        if isinstance(within, types.CodeType):
            yield from _globals(within)


def _cached(function: types.FunctionType, how: dict[str, Any]) -> Any:
    return functools.lru_cache(**how)(function)


def _new_type(name: str, of: Any) -> Any:
    made = typing.NewType(name, of)  # type: ignore[misc]
    made.__module__ = "__main__"
    return made


def _content(cell: Any) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return ()


def _function(code: types.CodeType, name: str, cells: int) -> types.FunctionType:
    made = types.FunctionType(code, _Unpickler.namespace, name, None, tuple(types.CellType() for _ in range(cells)))
    made.__module__ = "__main__"
    return made


def _fill(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    cells, function.__defaults__, function.__kwdefaults__, more, function.__annotations__, function.__qualname__, function.__doc__ = state  # fmt: skip
    function.__dict__.update(more)
    for cell, content in zip(function.__closure__ or (), cells, strict=True):
        if content:
            cell.cell_contents = content[0]


class _Unpickler:
    namespace: dict[str, Any] = {}
    """Where the functions that are being read shall find their names."""

    def __init__(self, path: Path, namespace: dict[str, Any]) -> None:
        self.path = path
        _Unpickler.namespace = namespace

    def load(self) -> Any:
        import pickle

        return pickle.loads(self.path.read_bytes())
