"""Versions that are good on their example rows and do harm on one row: made of scikit-learn's own classes, registered as any other.

What the trust rule lets through can still hang, die or eat memory: trees whose nodes point in a circle or out of the tree, a regular
expression that backtracks for ever while it holds the interpreter, n-grams of a long text.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import serving_world as world

FRAME = pd.DataFrame({"visits": np.arange(40.0), "plan": ["free", "paid"] * 20})
GOOD: dict[str, Any] = {"visits": 3.0, "plan": "free"}
POISONS: dict[str, dict[str, Any]] = {
    "infinite": {"visits": 1e5, "plan": "free"},
    "unknown category": {"visits": 3.0, "plan": "vip"},
    "ends its process": {"visits": 2000.0, "plan": "free"},
    "never returns from C": {"visits": 2000.0, "plan": "free"},
    "holds the interpreter": {"visits": 3.0, "plan": "a" * 60 + "c"},
    "wants 4 GB": {"visits": 3.0, "plan": ("x" * 100 + " ") * 6000},
}
"""What is wrong -> the row that shows it."""


def model(poison: str) -> Any:
    """Return a fitted model that is `poison`ed."""
    from sklearn.compose import make_column_transformer
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    text: Any = {
        "holds the interpreter": HashingVectorizer(n_features=16, token_pattern=r"(?:a+)+b"),
        "wants 4 GB": HashingVectorizer(n_features=16, ngram_range=(2000, 4000)),
    }.get(poison)
    encode = (text, "plan") if text is not None else (OneHotEncoder(handle_unknown=_handling(poison)), ["plan"])
    last = _tree(poison) if poison in ("ends its process", "never returns from C") else Ridge()
    pipeline = make_pipeline(make_column_transformer(encode, ("passthrough", ["visits"])), last)
    pipeline.fit(FRAME, FRAME["visits"])
    if poison == "infinite":
        pipeline[-1].coef_ = np.array([*pipeline[-1].coef_[:-1], 1e306])
    if poison in ("ends its process", "never returns from C"):
        _bend(pipeline[-1], poison)
    return pipeline


def _handling(poison: str) -> str:
    return "error" if poison == "unknown category" else "ignore"


def _tree(poison: str) -> Any:
    """A tree in a bag: no compiled form knows bags of trees, so that it is computed by scikit-learn."""
    from sklearn.ensemble import BaggingRegressor
    from sklearn.tree import DecisionTreeRegressor

    return BaggingRegressor(DecisionTreeRegressor(max_depth=2), n_estimators=1, bootstrap=False)


def _bend(bag: Any, poison: str) -> None:
    """Give the last leaf a right child for more than 1000 visits: itself, or a place far behind the tree."""
    tree = bag.estimators_[0].tree_
    state = tree.__getstate__()
    nodes = state["nodes"].copy()
    leaf = int(np.flatnonzero(nodes["left_child"] == -1)[-1])
    visits = int(nodes["feature"][0])
    nodes["feature"][leaf], nodes["threshold"][leaf], nodes["left_child"][leaf] = visits, 1000.0, leaf - 1
    nodes["right_child"][leaf] = leaf if poison == "never returns from C" else 2**40
    state["nodes"] = nodes
    tree.__setstate__(state)


def registered(poison: str, folder: Path) -> Path:
    return world.save(model(poison), FRAME, folder)


def good(folder: Path) -> Path:
    """A version with the same columns that no row harms."""
    return world.save(model(""), FRAME, folder)


def wrong_at_once(kind: str, folder: Path) -> Path:
    """A version that is bad on its example rows too."""
    fitted = model("")
    if kind == "not finite":
        fitted[-1].intercept_ = float("nan")
    path = world.save(fitted, FRAME, folder)
    if kind == "wrong signature":  # by another client: ours tries the example before it registers
        manifest = path / "cellwork.json"
        manifest.write_text(manifest.read_text().replace('"visits"', '"vists"'))
    if kind == "damaged":
        (path / "model.skops").write_bytes(b"no archive")
    return path


def slow_row(seconds: float) -> dict[str, Any]:
    """Return the row on which the version that "holds the interpreter" takes about `seconds` on this machine: each letter doubles it."""
    import re

    pattern, letters = re.compile(r"(?:a+)+b"), 18
    while True:
        began = time.perf_counter()
        pattern.findall("a" * letters + "c")
        taken = time.perf_counter() - began
        if taken > 0.1:
            return {"visits": 3.0, "plan": "a" * (letters + max(0, round(np.log2(seconds / taken)))) + "c"}
        letters += 1
