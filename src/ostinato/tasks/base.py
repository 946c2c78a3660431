"""What estimators share: parameters that are read from `__init__`, as scikit-learn does it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

from ostinato.errors import InputError


class Estimator:
    """`__init__` only stores its arguments under their own names; learned attributes end in `_`.

    `get_params`, `set_params` and `repr` follow scikit-learn, so `sklearn.base.clone` and its searches work
    without scikit-learn being needed.
    """

    notes_: list[str]
    fingerprints_: Mapping[str, Mapping[str, Any]]
    """Of the data that a run was made from, by the name of the part."""

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name. `deep` changes nothing: no argument is an estimator."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **parameters: Any) -> Self:
        """Set constructor arguments by name; an unknown name raises with the known ones."""
        known = self._parameter_names()
        for name in parameters:
            if name not in known:
                raise InputError(
                    f"{type(self).__name__} has no parameter {name!r}; it has: {', '.join(known)}"
                )
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        signature = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if repr(value) != repr(signature[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def _forget(self) -> None:
        """Drop what was learned."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)

    def _take_over(self, fitted: Self) -> Self:
        """Have what another has learned, and keep the own parameters."""
        self._forget()
        self.__dict__.update({name: value for name, value in vars(fitted).items() if name.endswith("_")})
        return self

    def _require_fitted(self, attribute: str) -> Any:
        """The learned attribute, or an error that says to call fit."""
        if not hasattr(self, attribute):
            raise InputError(f"this {type(self).__name__} is not fitted; call fit first")
        return getattr(self, attribute)
