"""What was learned is kept under the id of what it does, and comes back as the same object."""

from __future__ import annotations

import msgspec
import numpy as np
import pandas as pd
import pytest
from sqlalchemy import text

from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, NotFound
from cellwork.features import transform
from cellwork.features.select import choose
from cellwork.features.transform import Transform, impute, scale
from cellwork_hub.platform.state import State

FRAME = pd.DataFrame({"a": [1.0, 2.0, np.nan, 4.0] * 10, "b": [0.0, 1.0, 0.0, 1.0] * 10})


def test_a_kept_transformer_comes_back_as_the_same_object_and_is_never_changed(client: Client, state: State) -> None:
    fitted = Transform([impute("a"), scale("a"), choose(1)]).fit(FRAME, FRAME["b"])
    kept = transform.keep(fitted, "air/shape")
    assert kept.id == fitted.recorded.id
    assert transform.keep(fitted, "air/shape").at == kept.at, "keeping it again changes nothing"
    back = transform.load(kept.id, project="air")
    pd.testing.assert_frame_equal(back.transform(FRAME), fitted.transform(FRAME))
    assert [t.name for t in client.features.transformers("air")] == ["shape"]
    with pytest.raises(NotFound, match="does not exist"):
        transform.load(kept.id, project="sea")
    with pytest.raises(BadInput, match="is not what its id says"):
        client.features.keep_transformer("air", msgspec.structs.replace(kept, steps=kept.steps[:1]))
    damaged = msgspec.structs.replace(kept, steps=kept.steps[1:])
    with state.engine.begin() as db:
        record = {"r": msgspec.json.encode(damaged).decode()}
        db.execute(text("UPDATE transformers SET record = :r"), record)
    with pytest.raises(Conflict, match="was changed in the database"):
        transform.load(kept.id, project="air")
