"""Tables in and out, with a memory of what came in.

:func:`read` takes arrays, tensors and data frames, :func:`load_file` takes files; both return a :class:`Table`: float64
numbers and the :class:`Schema` that turns numbers back into the same kind of thing. :class:`Grid` puts values of
discrete columns back on their grid. What was left out, as a saved row index is, the table's ``notes`` say. Whatever
cannot be used is an ``InputError`` of one line; rows count from 0.
"""

from gradlogp.data.files import check_output, load_file, load_labels, save_file
from gradlogp.data.grid import Axis, Grid, detect_grid
from gradlogp.data.schema import Schema, Table, read
from gradlogp.data.source import EXTENSIONS, has_names

__all__ = [
    "EXTENSIONS",
    "Axis",
    "Grid",
    "Schema",
    "Table",
    "check_output",
    "detect_grid",
    "has_names",
    "load_file",
    "load_labels",
    "read",
    "save_file",
]
