"""Arrays from .npz and .npy files of unknown origin: no program in them is run, no size in them is trusted."""
import io
import math
import pickle
import pickletools
import zipfile

import numpy as np


def read_arrays(content, *names):
    """Read arrays of an .npz. numpy allocates what a header says; here the bytes must exist."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in archive.infolist()):
            raise ValueError("its compression is none that numpy writes")
        for name in names:
            member = archive.read(f"{name}.npy")
            file, (shape, fortran, dtype) = _npy(member)
            yield _view(memoryview(member)[file.tell():], dtype, shape, fortran)


def _npy(content):
    """Open an .npy: returns the file after its header, and the header."""
    file = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return file, read(file)


def _view(content, dtype, shape, fortran):
    if dtype.kind not in "fiu" or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes are no {dtype} array of {str(shape)[:60]}")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


class _ArraysOnly(pickle._Unpickler):
    """Allows numpy arrays and plain containers, and nothing else: a pickle may hold a program.

    numpy's own functions are not called: they trust the size of an array and the flags of a type that a pickle names.
    The C unpickler allocates as many memo entries as the file claims; the Python one does not.
    """

    allowed = {("numpy", "ndarray"), ("numpy", "dtype"),
               *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
                 for name in ("_reconstruct", "scalar"))}

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
        return type(name, (_Part,), {})


class _Part:
    """A call of numpy as a pickle describes it: the function, its arguments, the state set afterwards."""

    def __init__(self, *given):
        self.given = given

    def __setstate__(self, state):
        self.state = state

    def value(self):
        """Return the array, the number, or the object in an array of one."""
        if type(self).__name__ == "scalar":
            return _view(self.given[1], self.given[0].dtype(), (), False).item()
        _, shape, kind, fortran, content = self.state
        if kind.given[0] == "O8" and shape == ():
            return content[0]
        return _view(content, kind.dtype(), shape, fortran)

    def dtype(self):
        return np.dtype(self.state[1] + self.given[0])


def read_authors_dict(content):
    """Read the authors' np.save of a dict: {class: scores (H, W) float32}."""
    file, (_, _, dtype) = _npy(content)
    if not dtype.hasobject:
        raise ValueError("not a dict of maps")
    start = file.tell()
    if sum(1 for _ in pickletools.genops(file)) > 20_000:       # also raises if bytes are missing
        raise ValueError("not a dict of maps")                  # 254 maps need fewer; a deeper tuple's hash would crash
    file.seek(start)
    table = _ArraysOnly(file).load()
    table = table.value() if isinstance(table, _Part) else table
    if not isinstance(table, dict):
        raise ValueError("not a dict of maps")
    table = {key.value() if isinstance(key, _Part) else key: scores.value() for key, scores in table.items()}
    if not all(type(key) is int for key in table):
        raise ValueError("not a dict of maps: its keys are no class ids")
    if sum(scores.nbytes for scores in table.values()) > len(content):
        raise ValueError("not a dict of maps: one is there twice")
    return table
