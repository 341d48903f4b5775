"""What our own estimators share: scikit-learn's protocol of parameters, without importing scikit-learn."""

from __future__ import annotations

from typing import Any, Self

from cellwork.errors import BadInput, near_miss


class Estimator:
    """Parameters are those of `__init__`, named in `_NAMES` and kept under their names."""

    _NAMES: tuple[str, ...] = ()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._NAMES}

    def set_params(self, **parameters: Any) -> Self:
        for name, value in parameters.items():
            if name not in self._NAMES:
                raise BadInput("parameter", name, f"is not one of {type(self).__name__}", near_miss(name, self._NAMES))
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def __sklearn_is_fitted__(self) -> bool:
        return any(name.endswith("_") and not name.startswith("_") for name in vars(self))
