"""Arrays from .npz, .npy and .pth files of unknown origin: no program in them is run, no size in them is trusted."""
import io
import math
import pickle
import pickletools
import struct
import zipfile

import numpy as np

STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
            "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1"}
HASHED = {"ADDITEMS", "FROZENSET", "EMPTY_SET"}        # a set hashes its elements, which a deep tuple can crash


def read_table(content, names=None):
    """Read a table of arrays: an .npz, np.save of a dict, or torch.save of a dict; tensors become arrays.

    names  the text keys that are wanted; others are left out. None: all. Integers as keys are all read.
    Returns {name or integer: array, or a list of numbers}.
    """
    if content.startswith(b"\x93NUMPY"):
        return _plain(_read_npy_dict(content), names, len(content))
    if not content.startswith((b"PK", b"\x80")):        # \x80: a pickle
        raise ValueError("it does not begin as .npz, .npy and .pth files do")
    if not content.startswith(b"PK"):
        return _plain(_read_legacy_torch(content), names, len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        kinds = {member.compress_type for member in archive.infolist()}
        start = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if start and kinds == {zipfile.ZIP_STORED}:
            return _plain(_read_zipped_torch(archive, start.removesuffix("data.pkl")), names, len(content))
        if not kinds <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("its compression is none that numpy writes")
        there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        found = {name: _read_npy_array(archive.read(f"{name}.npy")) for name in there if names is None or name in names}
        if not found:
            raise ValueError(f"it holds {str(archive.namelist())[:60]}, none of {', '.join(sorted(names or ['.npy']))}")
        return found


def _read_npy_array(content):
    """Read an .npy of numbers. numpy allocates what the header says; here the bytes must exist."""
    file, (shape, fortran, dtype) = _npy(content)
    return _view(memoryview(content)[file.tell():], dtype, shape, fortran)


def _read_npy_dict(content):
    """Unpickle np.save of an object; a file of plain numbers holds no dict."""
    file, (_, _, dtype) = _npy(content)
    if not dtype.hasobject:
        raise ValueError("not a dict of arrays")
    return _ArraysOnly(file).load_checked()


def _npy(content):
    """Open an .npy: returns the file after its header, and the header."""
    file = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return file, read(file)


def _read_zipped_torch(archive, folder):
    """Read torch.save's zip: folder/data.pkl names the storages folder/data/KEY."""
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are stored in another byte order")
    reader = _ArraysOnly(io.BytesIO(archive.read(f"{folder}data.pkl")))
    found = reader.load_checked()
    for key, storage in reader.storages.items():
        storage.content = archive.read(f"{folder}data/{key}")
    return found


def _read_legacy_torch(content):
    """Read torch.save's older format, also that of a single storage within a pickled tensor.

    Five pickles (a magic number, the version, the system, the object, the storages' keys), then each storage: the
    count of its numbers, and these.
    """
    file = io.BytesIO(content)
    if _ArraysOnly(file).load_checked() != 0x1950A86A20F9469CFC6C:
        raise ValueError("not a dict of arrays")
    _, _ = _ArraysOnly(file).load_checked(), _ArraysOnly(file).load_checked()
    reader = _ArraysOnly(file)
    found, keys = reader.load_checked(), _ArraysOnly(file).load_checked()
    for key in keys:
        count, storage = struct.unpack("<q", file.read(8))[0], reader.storages[key]
        storage.content = file.read(count * storage.itemsize)       # too few bytes: see the tensor's error
    return found


def _plain(table, names, most):
    """Turn a dict's parts into arrays. most: the bytes that all together may have."""
    table = _value(table)
    if not isinstance(table, dict):
        raise ValueError("not a dict of arrays")
    found = {key: _value(value) for key, value in table.items() if type(key) is int or names is None or key in names}
    if len(found) < len(table) and not (found and all(type(key) is str for key in table)):
        raise ValueError(f"not a dict of arrays: its keys are {str(list(table))[:60]}, no class ids")
    if not all(isinstance(value, np.ndarray) for key, value in found.items() if type(key) is int):
        raise ValueError("not a dict of arrays: a class has something else than an array")
    if sum(value.nbytes for value in found.values() if isinstance(value, np.ndarray)) > most:
        raise ValueError("not a dict of arrays: one is there twice")
    return found


def _view(content, dtype, shape, fortran):
    if dtype.kind not in "fiub" or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes are no {dtype} array of {str(shape)[:60]}")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


class _ArraysOnly(pickle._Unpickler):
    """Allows numpy arrays, tensors and plain containers, and nothing else: a pickle may hold a program.

    The functions of numpy and torch are not called: they trust the size of an array and the flags of a type that a
    pickle names. The C unpickler allocates as many memo entries as the file claims; the Python one does not.
    """

    allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
               *((f"numpy.{core}.{module}", name) for core in ("core", "_core") for module, name in (
                   ("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))),
               *(("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
               ("torch.storage", "_load_from_bytes"), *(("torch", name) for name in STORAGES)}

    def __init__(self, file):
        super().__init__(file)
        self.file, self.storages = file, {}

    def load_checked(self):
        """Unpickle the next object of the file."""
        start = self.file.tell()
        for step, _, _ in pickletools.genops(self.file):        # also raises if bytes are missing
            if step.name in HASHED:
                raise ValueError(f"it holds {step.name}, not only arrays")
        self.file.seek(start)
        return self.load()

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
        """Set an entry of a dict. A key is looked at before it is hashed."""
        key = _value(key)
        if type(key) not in (str, int):
            raise ValueError("a key is neither a name nor a number")
        if key in self.stack[-1]:
            raise ValueError(f"{key} is there twice")
        self.stack[-1][key] = value

    dispatch = pickle._Unpickler.dispatch | {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
                                             pickle.DICT[0]: load_dict}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
        return type(name, (_Part,), {})

    def persistent_load(self, named):
        _, kind, key, *_ = named
        return self.storages.setdefault(key, _Storage(STORAGES[kind.__name__]))


class _Storage:
    """The numbers of a tensor; `content` is set when they have been read."""

    def __init__(self, kind):
        self.kind, self.content = kind, b""
        self.itemsize = 2 if kind == "bfloat16" else np.dtype(kind).itemsize

    def numbers(self):
        """Return them as a flat array; bfloat16 as float32, whose upper half it is."""
        if self.kind != "bfloat16":
            return np.frombuffer(self.content, self.kind)
        return (np.frombuffer(self.content, "<u2").astype("<u4") << 16).view("<f4")


class _Part:
    """A call of numpy or torch as a pickle describes it: the function, its arguments, the state set afterwards."""

    def __init__(self, *given):
        self.given = given

    def __setstate__(self, state):
        self.state = state

    def value(self):
        """Return the array, the number, the bytes, or the object in an array of one."""
        name = type(self).__name__
        if name == "_rebuild_parameter":
            return _value(self.given[0])
        if name.startswith("_rebuild_tensor"):
            return self._tensor(*self.given[:4])
        if name == "encode":                    # protocol 2 has no bytes
            return self.given[0].encode(self.given[1])
        if name == "scalar":
            return _view(_value(self.given[1]), self.given[0].dtype(), (), False).item()
        if name == "_frombuffer":               # an array, as protocol 5 writes it
            content, kind, shape, order = self.given
            return _view(_value(content), kind.dtype(), shape, order == "F")
        _, shape, kind, fortran, content = self.state
        if kind.given[0] in ("O", "O8") and shape == ():
            return content[0]
        return _view(_value(content), kind.dtype(), shape, fortran)

    def dtype(self):
        return np.dtype(self.state[1] + self.given[0])

    @staticmethod
    def _tensor(storage, offset, size, stride):
        """Return a tensor's numbers; its offset, size and strides must lie within its storage."""
        if isinstance(storage, _Part):
            storage = _read_legacy_torch(storage.given[0])
        flat = storage.numbers()
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or count > len(flat) or count and last >= len(flat):
            raise ValueError(f"{len(flat)} numbers are no tensor of {str(size)[:60]}")
        return np.lib.stride_tricks.as_strided(flat[offset:], size, [step * flat.itemsize for step in stride])


def _value(part):
    """Return what a pickle describes: of a part its value, of a list those of its items."""
    if isinstance(part, list | tuple):
        return [item.value() if isinstance(item, _Part) else item for item in part]
    return part.value() if isinstance(part, _Part) else part
