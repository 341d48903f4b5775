"""Reports: a model beside its baseline, as text and as a table in a notebook."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from cellwork.evaluation import Report, validation
from cellwork.evaluation.compare import report
from cellwork.wire.evaluations import Evaluation, Metric, VersionRef
from cellwork.wire.origin import Origin

Y = np.arange(200) % 2
SCORES = np.clip(Y * 0.5 + np.linspace(0, 0.5, 200), 0.01, 0.99)


def test_a_validation_shows_model_and_baseline_and_what_lies_between() -> None:
    found = validation(Y, SCORES, baseline=np.full(200, 0.5))
    text = repr(found)
    assert text.splitlines()[0] == "validation on 200 rows"
    assert text.splitlines()[1].split() == ["metric", "model", "baseline"]
    difference = found["roc_auc"].value - 0.5
    assert f"roc_auc: {difference:+.4f} against the baseline" in text
    assert "<th>baseline</th>" in found._repr_html_()


def test_a_validation_without_baseline_is_one_column() -> None:
    found = validation([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], kind="regressor")
    assert found.head() == ["metric", "model"]
    assert "against" not in repr(found)
    assert [row[0] for row in found.rows()] == ["rmse", "mae", "r2", "mape"]


def test_an_evaluation_reads_as_a_sentence_and_a_table() -> None:
    metric = Metric(value=0.7, low=0.69, high=0.71)
    made = Evaluation(
        id="eval_x", version=VersionRef(name="flights/delay", version=3), holdout="november", question_no=2, rows=26_000,
        metrics={"roc_auc": metric}, baseline={"roc_auc": Metric(value=0.6, low=0.59, high=0.61)}, champion={}, dataset="ds_x",
        by="ada", at=datetime(2026, 1, 1, tzinfo=UTC), origin=Origin(),
    )  # fmt: skip
    found = report(made)
    assert (
        repr(found).splitlines()[0] == "flights/delay version 3 on sealed holdout 'november': 26,000 rows, question 2"
    )
    assert "0.7000 [0.6900, 0.7100]  0.6000 [0.5900, 0.6100]" in repr(found)
    assert "champion" not in repr(found)
    assert found.evaluation is made


def test_names_are_escaped_in_a_notebook() -> None:
    assert "<script>" not in Report("<script>", {"m": Metric(value=1, low=1, high=1)})._repr_html_()
