"""`CovariateEncoding`: how columns of text, yes/no and numbers become floats, in training and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import InputError

ROLES = ("known", "observed", "static")
UNKNOWN_CODE = -1.0  # a category that the vocabulary lacks
_YES_NO = (("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"))


@dataclass(frozen=True)
class ColumnEncoding:
    """One column: "number", "boolean" (vocabulary: what means 0, what means 1) or "text" (one-hot)."""

    name: str
    kind: str
    vocabulary: tuple[str, ...] = ()

    @classmethod
    def of_categories(cls, name: str, categories: list[str]) -> ColumnEncoding:
        """The encoding of a column's texts: yes and no as one float column, else one per category, sorted."""
        lower = {category.lower() for category in categories}
        for pair in _YES_NO:
            if lower and lower <= set(pair):
                return cls(name, "boolean", pair)
        return cls(name, "text", tuple(sorted(categories)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the float columns."""
        return (
            tuple(f"{self.name}={word}" for word in self.vocabulary) if self.kind == "text" else (self.name,)
        )

    def code(self, category: str) -> float:
        """The place of a category in the vocabulary, `UNKNOWN_CODE` where it is not in it."""
        category = category.lower() if self.kind == "boolean" else category
        return float(self.vocabulary.index(category)) if category in self.vocabulary else UNKNOWN_CODE

    def expand(self, cells: NDArray[np.float64]) -> NDArray[np.float64]:
        """Numbers or codes (n,) to float columns (n, len(names)); NaN stays NaN.

        An unknown category gives zeros in a text column and NaN in a boolean one.
        """
        if self.kind == "boolean":
            return np.where(cells == UNKNOWN_CODE, np.nan, cells)[:, None]
        if self.kind == "number":
            return cells[:, None]
        wide = (cells[:, None] == np.arange(len(self.vocabulary))).astype(np.float64)
        wide[np.isnan(cells)] = np.nan
        return wide


@dataclass(frozen=True)
class CovariateEncoding:
    """The encodings of all covariates; stored with the run and used again in prediction."""

    known: tuple[ColumnEncoding, ...] = ()
    observed: tuple[ColumnEncoding, ...] = ()
    static: tuple[ColumnEncoding, ...] = ()

    def columns(self, role: str) -> tuple[ColumnEncoding, ...]:
        """The columns of a role: "known", "observed" or "static"."""
        if role not in ROLES:
            raise InputError(f"role {role!r} is not known; it is one of: {', '.join(ROLES)}")
        found: tuple[ColumnEncoding, ...] = getattr(self, role)
        return found

    def names(self, role: str) -> tuple[str, ...]:
        """Names of the float columns of a role, such as `("price", "weather=rain", "weather=sun")`."""
        return tuple(name for column in self.columns(role) for name in column.names)

    def expand(self, role: str, cells: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw cells (n, columns) to float columns (n, len(names(role)))."""
        columns = self.columns(role)
        if all(column.kind == "number" for column in columns):
            return cells
        return np.concatenate([column.expand(cells[:, i]) for i, column in enumerate(columns)], axis=1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        return {
            role: [
                {"name": column.name, "kind": column.kind, "vocabulary": list(column.vocabulary)}
                for column in self.columns(role)
            ]
            for role in ROLES
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> CovariateEncoding:
        """The encoding that `to_json` wrote."""
        return cls(
            **{
                role: tuple(
                    ColumnEncoding(entry["name"], entry["kind"], tuple(entry["vocabulary"]))
                    for entry in stored[role]
                )
                for role in ROLES
            }
        )
