"""A network of dense layers in PyTorch, trained by skorch. The fitted model keeps its weights as NumPy arrays.

It takes the device that is there and answers the same without one: predictions are made on the processor. With `processes`, several learn
together, each from its share of the rows (`parallel`).
"""

from __future__ import annotations

from typing import Any

from cellwork.errors import BadInput
from cellwork.training import parallel
from cellwork.training.estimator import Estimator

PATIENCE = 5


class _Network(Estimator):
    """What classifier and regressor share.

    Parameters
    ----------
    hidden : neurons of each hidden layer.
    epochs : at most; training stops when the loss on a tenth of the rows has not fallen for five.
    device : ``auto`` takes CUDA where it is there.
    processes : how many learn together, started by `torchrun`; each takes a device of its own where there are enough.
    """

    _NAMES = ("hidden", "epochs", "learning_rate", "dropout", "batch", "device", "seed", "processes")
    _KIND = ""

    def __init__(
        self, hidden: tuple[int, ...] = (64, 64), epochs: int = 50, learning_rate: float = 1e-3, dropout: float = 0.1,
        batch: int = 256, device: str = "auto", seed: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        self.hidden, self.epochs, self.learning_rate, self.dropout = hidden, epochs, learning_rate, dropout
        self.batch, self.device, self.seed, self.processes = batch, device, seed, processes

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifier = self._KIND == "classifier"
        return Tags(
            estimator_type=self._KIND, target_tags=TargetTags(required=True), transformer_tags=None,
            regressor_tags=None if classifier else RegressorTags(), classifier_tags=ClassifierTags() if classifier else None,
            input_tags=InputTags(),
        )  # fmt: skip

    def _train(self, X: Any, target: Any, outputs: int) -> None:
        import numpy as np

        rows = _dense(X)
        if self.processes > 1:
            task = parallel.Task(
                hidden=tuple(self.hidden), outputs=outputs, loss="classes" if self._KIND == "classifier" else "squares",
                epochs=self.epochs, patience=PATIENCE, learning_rate=self.learning_rate, dropout=self.dropout, batch=self.batch,
                device=self.device, seed=self.seed,
            )  # fmt: skip
            kept, losses = parallel.train(rows, target, task, processes=self.processes)
        else:
            kept, losses = self._train_alone(rows, target, outputs)
        self.losses_ = np.array(losses)
        self.layers_ = [(kept[k], kept[k + 1]) for k in range(0, len(kept), 2)]

    def _train_alone(self, rows: Any, target: Any, outputs: int) -> tuple[list[Any], list[float]]:
        import torch
        from skorch import NeuralNetClassifier, NeuralNetRegressor
        from skorch.callbacks import EarlyStopping
        from skorch.dataset import ValidSplit

        torch.manual_seed(self.seed)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        net, loss = (
            (NeuralNetClassifier, torch.nn.CrossEntropyLoss)
            if self._KIND == "classifier"
            else (NeuralNetRegressor, torch.nn.MSELoss)
        )
        trained = net(
            parallel.build(rows.shape[1], self.hidden, self.dropout, outputs), criterion=loss, max_epochs=self.epochs, lr=self.learning_rate,
            batch_size=min(self.batch, len(rows)), optimizer=torch.optim.Adam, device=device, verbose=0,
            train_split=ValidSplit(0.1, random_state=self.seed), callbacks=[("patience", EarlyStopping(patience=PATIENCE, load_best=True))],
        )  # fmt: skip
        trained.fit(rows, target)
        kept = [value.detach().cpu().numpy() for value in trained.module_.state_dict().values()]
        return kept, [epoch["train_loss"] for epoch in trained.history]

    def _forward(self, X: Any) -> Any:
        """Return the last layer's sums, shape (n, outputs), computed with NumPy."""
        import numpy as np

        values = _dense(X)
        for weights, bias in self.layers_[:-1]:
            values = np.maximum(values @ weights.T + bias, 0)
        weights, bias = self.layers_[-1]
        return (values @ weights.T + bias).astype(float)


class NetworkClassifier(_Network):
    _KIND = "classifier"

    def fit(self, X: Any, y: Any) -> NetworkClassifier:
        """Fit to classes `y`, shape (n,)."""
        import numpy as np

        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self._train(X, codes.astype(np.int64), len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> Any:
        """Return the rate of each class, shape (n, classes)."""
        from scipy.special import softmax

        return softmax(self._forward(X), axis=1)

    def predict(self, X: Any) -> Any:
        return self.classes_[self._forward(X).argmax(axis=1)]


class NetworkRegressor(_Network):
    _KIND = "regressor"

    def fit(self, X: Any, y: Any) -> NetworkRegressor:
        """Fit to numbers `y`, shape (n,), of any scale."""
        import numpy as np

        target = np.asarray(y, dtype=float)
        self.mean_, self.spread_ = float(target.mean()), float(target.std()) or 1.0
        scaled = ((target - self.mean_) / self.spread_).astype(np.float32).reshape(-1, 1)
        self._train(X, scaled, 1)
        return self

    def predict(self, X: Any) -> Any:
        return self._forward(X)[:, 0] * self.spread_ + self.mean_


def _dense(X: Any) -> Any:
    import numpy as np

    rows = np.asarray(X.todense() if hasattr(X, "todense") else X, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise BadInput("rows", "", "hold missing or infinite numbers", "let the catalogue's pipeline prepare them")
    return rows
