"""List columns of a part's table: several entries per image, each with the same fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def list_column(rows: Sequence[Sequence[Sequence[np.ndarray]]], fields: dict[str, str]) -> pa.Array:
    """Build a list<struct> column: `rows[i][f]` holds the values of field f in row i.

    Args:
        fields: name → Arrow's name of its type, e.g. "int32".
    """
    import pyarrow as pa

    lengths = [sum(len(piece) for piece in row[0]) for row in rows]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    arrays = []
    for number, kind in enumerate(getattr(pa, name)() for name in fields.values()):
        pieces = [piece for row in rows for piece in row[number]]
        flat = np.concatenate(pieces) if pieces else np.zeros(0)
        arrays.append(pa.array(flat).cast(kind))
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, names=list(fields)))
