"""What an injected strategy chose, as numbers of parts, and those as text: a recipe that needs no code to be replayed."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING, Any

from cellwork.data.dataset import Rows
from cellwork.data.split import ways
from cellwork.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    Places = np.ndarray[Any, np.dtype[np.int64]]


def pack(places: Places) -> str:
    """Return the numbers of parts (-1 to 126) as text."""
    import numpy as np

    return base64.b64encode(zlib.compress(places.astype(np.int8).tobytes(), 9)).decode()


def unpack(text: str, rows: int) -> Places:
    """Return the numbers of parts; raises BadInput if they are not those of `rows` rows."""
    import numpy as np

    try:
        places = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.int8).astype(np.int64)
    except (binascii.Error, zlib.error, ValueError):
        raise BadInput("places of the recipe", "", "can't be read", "store the recipe whole") from None
    if len(places) != rows:
        raise BadInput(
            "recipe",
            f"of {len(places):,} rows",
            f"is not of this dataset's {rows:,}",
            "give the dataset it was made of",
        )
    return places


def name_of(strategy: Any) -> str:
    """Return what a strategy is called in a recipe: its class with its parameters, or where the function is defined."""
    if hasattr(strategy, "split"):
        return f"{type(strategy).__module__.split('.')[0]}: {strategy!r}"
    return f"{getattr(strategy, '__module__', '')}.{getattr(strategy, '__qualname__', type(strategy).__name__)}"


def from_splitter(dataset: Rows, splitter: Any, group: str = "") -> list[Places]:
    """Return the places (0 train, 1 valid, -1 neither) of each split that a splitter of scikit-learn makes.

    It sees the rows with a label, if there are labels; the others are in no part.

    Raises
    ------
    BadInput
        The splitter refuses the rows, such as for more folds than rows, or puts a row into both parts.
    """
    import numpy as np

    frame, label = dataset.frame(), dataset.record.label
    known = frame.get_column(label).is_not_null().to_numpy() if label else np.ones(frame.height, dtype=bool)
    positions = np.flatnonzero(known)
    groups = ways.column_of(dataset, group).to_numpy()[known] if group else None
    X, y = dataset.X() if dataset.columns else np.zeros((len(positions), 1)), dataset.y() if label else None
    made = []
    try:
        for train, valid in splitter.split(X, y, groups):
            places = np.full(frame.height, -1, dtype=np.int64)
            places[positions[train]] = 0
            if (places[positions[valid]] == 0).any():
                raise BadInput("strategy", name_of(splitter), "puts a row into both parts", "mend it")
            places[positions[valid]] = 1
            made.append(places)
    except (ValueError, TypeError) as error:
        raise BadInput("strategy", name_of(splitter), f"refuses the dataset: {error}", "choose another") from None
    return made
