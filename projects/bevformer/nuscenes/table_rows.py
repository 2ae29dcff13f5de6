"""One nuScenes table: its rows are checked while they are parsed; errors name file, row and field."""

from __future__ import annotations

import os
import os.path as osp
from typing import Any, Callable, Dict, Iterable, Sequence

import numpy as np

from projects.bevformer.files.data_files import load_json
from projects.bevformer.nuscenes.vectors import described, usable_rows

Row = Dict[str, Any]

# Table -> {field: shape of its vectors}; (4,) are quaternions.
VECTORS = {
    "calibrated_sensor": {"translation": (3,), "rotation": (4,)},
    "ego_pose": {"translation": (3,), "rotation": (4,)},
    "sample_annotation": {"translation": (3,), "size": (3,), "rotation": (4,)},
}
# Table -> {field: type of its values}, where another type would only fail later, or not at all.
_TYPES = {
    "attribute": {"name": str},
    "category": {"name": str},
    "sample": {"timestamp": int},
    "sample_annotation": {"attribute_tokens": list, "num_lidar_pts": int, "num_radar_pts": int},
    "sample_data": {"filename": str, "timestamp": int, "width": int, "height": int},
    "scene": {"name": str, "nbr_samples": int},
    "sensor": {"channel": str},
}
_KINDS = {str: "a text", int: "a whole number", list: "a list"}
_REMEDY = "unpack the metadata again"


class TableError(ValueError):
    """A damaged table; the message names the file, and row and field if there is one."""


class _DanglingToken(ValueError):
    def __init__(self, table: str, token: Any) -> None:
        super().__init__(f"{table}.json has no row {token!r}, which another table names: {_REMEDY}")
        self.table, self.token = table, token


class Rows(dict):
    """Token -> row of a table; within `Table.read` a missing token is an error that names the row."""

    def __init__(self, table: str, rows: Any = ()) -> None:
        super().__init__(rows)
        self.table = table

    def __missing__(self, token: Any) -> Any:
        raise _DanglingToken(self.table, token)


class Table:
    """A table file.

    Args:
        folder: such as `data/nuscenes/v1.0-mini`.
        name: such as "sample_data".
    """

    def __init__(self, folder: str, name: str) -> None:
        self.name, self.path = name, osp.join(folder, f"{name}.json")

    def error(self, problem: str) -> TableError:
        """The error of a damaged table."""
        return TableError(f"{self.path}: {problem}: {_REMEDY}")

    def dangling(self, field: str, token: str, target: Any, table: str) -> TableError:
        """The error of a row whose field refers to a row that does not exist."""
        return self.error(f"{field} of {token} is {target!r}, which is not in {table}.json")

    def read(self, keep: Callable[[Row], Any]) -> int:
        """Read the table.

        Args:
            keep: called with each row as soon as it is parsed, so that no more of it than needed is kept.

        Returns:
            number of rows.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is empty, damaged or not a list of records, or `keep` failed on a row.
        """
        if not osp.isfile(self.path):
            raise FileNotFoundError(f"table {self.path} does not exist: {_REMEDY}")
        if os.path.getsize(self.path) == 0:
            raise ValueError(f"table {self.path} is empty: {_REMEDY}")
        position = -1

        def hook(row: Row) -> None:
            nonlocal position
            position += 1
            try:
                keep(row)
            except TableError:
                raise
            except (_DanglingToken, ValueError, LookupError, TypeError, OverflowError) as error:
                raise self._row_error(position, row, error) from error

        try:
            with open(self.path, encoding="utf-8") as file:
                is_list = file.read(100).lstrip()[:1] == "["
                file.seek(0)
                rows = load_json(file, object_hook=hook if is_list else None)
        except TableError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"table {self.path} is damaged ({error}): {_REMEDY}") from error
        if not is_list or len(rows) != position + 1:
            raise ValueError(f"table {self.path} is not a list of records: {_REMEDY}")
        return len(rows)

    def _row_error(self, position: int, row: Row, error: Exception) -> TableError:
        token = row.get("token", "without token")
        if isinstance(error, _DanglingToken):
            fields = [f for f, v in row.items() if v == error.token or v == [error.token]]
            return self.dangling(fields[0], token, error.token, error.table)
        what = f"has no {error}" if isinstance(error, KeyError) else f"is damaged: {error}"
        return self.error(f"record {position} ({token}) {what}")

    def index(self, keep: Callable[[Row], Any]) -> Rows:
        """Read the table as token -> what `keep` returns, with checked types; tokens must not repeat."""
        indexed = Rows(self.name)

        def insert(row: Row) -> None:
            token = row["token"]
            if type(token) is not str:
                raise TypeError("its token is not a text")
            self.check_types(row)
            indexed[token] = keep(row)

        self.check_repeats(self.read(insert) - len(indexed))
        return indexed

    def check_repeats(self, repeats: int) -> None:
        """Refuse a table in which a token occurs twice."""
        if repeats:
            raise self.error(f"{repeats} records repeat the token of another")

    def check_types(self, row: Row) -> None:
        """Refuse a row with a field of a wrong type."""
        for field, kind in _TYPES.get(self.name, {}).items():
            if type(row[field]) is not kind:
                raise self.error(f"{field} of {row['token']} is {row[field]!r}, not {_KINDS[kind]}")

    def check_vectors(
        self, tokens: Iterable[str], values: Sequence[Any], field: str, shape: tuple[int, ...]
    ) -> None:
        """Refuse a column of vectors or matrices that `usable_rows` refuses.

        Args:
            tokens: of the rows.
            values: one vector or matrix per row.
            field: name of the column.
            shape: of each value; (4,) for quaternions, (3, 3) for camera matrices.
        """
        good = usable_rows(values, shape)
        if not good.all():
            row = int(np.argmin(good))
            raise self.error(
                f"{field} of {list(tokens)[row]} is {values[row]}, not {described(shape)}"
            )
