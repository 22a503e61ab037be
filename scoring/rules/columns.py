"""The columns a rule may read: their types when a rule set is loaded, their values when it is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class ColumnType(StrEnum):
    """Types of the rule language. A missing number is NaN, a missing text is None; a boolean is never missing."""

    NUMBER = "number"
    BOOLEAN = "boolean"
    TEXT = "text"


@dataclass(frozen=True)
class Column:
    """A column's declaration.

    ``evidence`` names the indicator kind whose labels from *other parties* the column shows. A rule that reads
    such a column must declare ``evidence = "KIND"``, so that the policy's tier bounds its verdict.
    """

    name: str
    type: ColumnType
    evidence: str | None = None


class ColumnSchema(Mapping[str, Column]):
    """The declared columns, by name."""

    def __init__(self, columns: Iterable[Column]) -> None:
        self._columns: dict[str, Column] = {}
        for column in columns:
            if column.name in self._columns:
                raise ValueError(f"column {column.name!r} is declared twice")
            if not column.name.isidentifier():
                raise ValueError(f"column {column.name!r} is no identifier, so no rule could name it")
            self._columns[column.name] = column

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def with_gone(self, then: Iterable[Column]) -> ColumnSchema:
        """These columns, and those of ``then`` that are no longer among them."""
        return ColumnSchema([*self.values(), *(each for each in then if each.name not in self)])


@dataclass(frozen=True)
class TextColumn:
    """Text as small integers: ``codes`` (int [n], -1 = missing) index ``vocabulary`` (distinct strings).

    Comparing with a constant then costs one integer comparison a row.
    """

    codes: NDArray[np.integer]
    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> TextColumn:
        """Encode ``values``, keeping their order."""
        positions: dict[str, int] = {}
        codes = np.fromiter(
            (-1 if value is None else positions.setdefault(value, len(positions)) for value in values),
            dtype=np.int32,
            count=len(values),
        )
        return cls(codes, tuple(positions))

    def __len__(self) -> int:
        return len(self.codes)

    def value(self, row: int) -> str | None:
        """The text of one row, None when missing."""
        code = int(self.codes[row])
        return None if code < 0 else self.vocabulary[code]


ColumnValues = NDArray[np.float64] | NDArray[np.bool_] | TextColumn
Cell = float | bool | str | None


class Layout:
    """Where the columns of batches stand that are laid out alike; told apart by identity.

    What has to find its columns looks for them once a layout and keeps what it found with it. ``matrix``: the names of
    a matrix's rows; ``others``: those beside it, which come first where a name is in both.
    """

    __slots__ = ("matrix", "names", "others", "places")

    def __init__(self, matrix: tuple[str, ...], others: tuple[str, ...]) -> None:
        self.matrix = matrix
        self.others = others
        self.names = frozenset((*matrix, *others))
        self.places: Mapping[str, int] = {
            name: place for place, name in enumerate(matrix) if name not in others
        }


class MatrixColumns(Mapping[str, ColumnValues]):
    """Columns most of which are the rows of a matrix float64 [f, n]: no object is made of one nobody asks for."""

    __slots__ = ("layout", "matrix", "others")

    def __init__(
        self, layout: Layout, matrix: NDArray[np.float64], others: Mapping[str, ColumnValues]
    ) -> None:
        """``others`` may lack some that the layout names: they are not there yet."""
        self.layout = layout
        self.matrix = matrix
        self.others = others

    def __getitem__(self, name: str) -> ColumnValues:
        place = self.layout.places.get(name)
        return self.others[name] if place is None else self.matrix[place]

    def __contains__(self, name: object) -> bool:
        return name in self.layout.places or name in self.others

    def __iter__(self) -> Iterator[str]:
        yield from self.layout.places
        yield from self.others

    def __len__(self) -> int:
        return len(self.layout.places) + len(self.others)


def cell(values: ColumnValues, row: int) -> Cell:
    """One row's value as a plain Python object (float, bool, str or None), the form of the scalar path."""
    if isinstance(values, TextColumn):
        return values.value(row)
    value: Cell = values[row].item()
    return value
