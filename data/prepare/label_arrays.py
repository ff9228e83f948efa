"""Image-level labels as the field shares them, cls_labels.npy: a pickled dict {ID: (C,)}, read without unpickling.

What the pickle calls is looked at and never called: a pickle may hold a program.
"""
import math
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np

NUMPY = {(f"numpy.{core}.{module}", name) for core in ("core", "_core") for module, name in (
    ("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))}
ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), *NUMPY}
UNHASHED = {"ADDITEMS", "FROZENSET", "EMPTY_SET"}       # their elements would be hashed, which a deep tuple can crash


def read_label_arrays(path):
    """Read {ID: array (C,)} from the .npy of a dict, or from an .npz. Anything else, or a program, is a ValueError.

    irn stores an ID as a number: 2007000032 for 2007_000032.
    """
    try:
        table = _read(path)
        return {_image_id(key): _plain(value) for key, value in table.items()}
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}): name the .npy of labels") from None
    except Exception as error:      # a damaged pickle may raise anything
        raise ValueError(f"{path} is no dict of labels {{ID: 0 or 1 for each class}} saved by numpy ({error}): fetch "
                         "it again, or use labels.json") from None


def _read(path):
    if zipfile.is_zipfile(path):
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    with open(path, "rb") as file:
        major, _ = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        _, _, dtype = header(file)
        if not dtype.hasobject:
            raise ValueError(f"it holds an array of {dtype}, which names no images")
        start = file.tell()
        for opcode, _, _ in pickletools.genops(file):       # also raises if bytes are missing
            if opcode.name in UNHASHED:
                raise ValueError(f"it holds {opcode.name}, not only arrays")
        file.seek(start)
        table = _plain(_Labels(file).load())
    if not isinstance(table, dict):
        raise ValueError(f"it holds a {type(table).__name__}")
    return table


class _Labels(pickle._Unpickler):
    """Builds descriptions of numpy's calls. The C unpickler allocates what a file claims; the Python one does not."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
        return type(name, (_Call,), {})

    def load_setitems(self):
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2]):
            self._set(key, value)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def load_dict(self):
        items = self.pop_mark()
        self.stack.append({})
        for key, value in zip(items[::2], items[1::2]):
            self._set(key, value)

    def _set(self, key, value):
        key = _plain(key)
        if type(key) not in (str, int):
            raise ValueError("a key is neither a name nor a number")
        if key in self.stack[-1]:
            raise ValueError(f"{key} is there twice")
        self.stack[-1][key] = value

    dispatch = pickle._Unpickler.dispatch | {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
                                             pickle.DICT[0]: load_dict}


class _Call:
    """A call as a pickle describes it: the function's name, its arguments, the state set afterwards."""

    def __init__(self, *given):
        self.given = given

    def __setstate__(self, state):
        self.state = state


def _plain(value):
    """Return the array, number, bytes or single object that a call describes; any other value as it is."""
    if not isinstance(value, _Call):
        return value
    name = type(value).__name__
    if name == "encode":                                # bytes, as protocol 2 writes them
        return value.given[0].encode("latin-1")
    if name == "scalar":
        kind, content = value.given
        return _array(kind, (), _plain(content)).item()
    if name == "_frombuffer":                           # an array, as protocol 5 writes it
        content, kind, shape, _ = value.given
        return _array(kind, shape, content)
    if name == "_reconstruct":
        _, shape, kind, _, content = value.state
        return _plain(content[0]) if kind.given[0] in ("O", "O8") and shape == () else _array(kind, shape,
                                                                                              _plain(content))
    raise ValueError(f"it holds a {name} where labels should be")


def _array(kind, shape, content):
    dtype = np.dtype(kind.state[1] + kind.given[0])
    if dtype.kind not in "fiub" or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes are no {dtype} array of {str(shape)[:60]}")
    return np.frombuffer(content, dtype).reshape(shape)


def _image_id(key):
    if isinstance(key, int):
        digits = str(key)
        return f"{digits[:4]}_{digits[4:]}" if len(digits) == 10 else digits
    return Path(key).stem if key.endswith((".jpg", ".jpeg", ".png")) else key
