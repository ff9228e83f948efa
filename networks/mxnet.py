"""MXNet's .params files without MXNet: their layout, and what their names are in torch.

Source of the layout: MXNet's NDArray::Save in its versions. networks/pretrained.py opens the file.
"""
import math
import re
import struct

import numpy as np

_LIST_MAGIC, _DENSE = 0x112, 0
_MAGIC_INT64, _MAGIC_STORAGE = 0xF993FAC8, 0xF993FAC9
_DTYPES = dict(enumerate(("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")))
_LAYER = re.compile(r"(?:arg|aux):(?:(conv1a|bn7|linear1000)|(bn|res)(\d)(?:a|b(\d))_(branch\w+?))"
                    r"_(weight|bias|gamma|beta|moving_mean|moving_var)")
_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}


def read_arrays(file, size, path):
    """Read {name: numpy array} from an open .params file of `size` bytes; path is for the words of a ValueError."""
    reader = _Reader(file, size, path)
    magic, _, count = reader.numbers("QQQ")
    if magic != _LIST_MAGIC:
        raise reader.error("it does not begin as MXNet's .params do")
    arrays = [reader.array() for _ in range(count)]
    if reader.numbers("Q") != (count,):
        raise reader.error("it does not hold one name for each array")
    names = [reader.name() for _ in range(count)]
    if len(set(names)) < count:
        raise reader.error("a name is there twice")
    if reader.left:
        raise reader.error(f"{reader.left} bytes follow the last name")
    return dict(zip(names, arrays))


def torch_name(name):
    """Translate arg:bn4b3_branch2a_gamma to b4_3.bn_branch2a.weight; an unknown name stays as it is."""
    if not (match := _LAYER.fullmatch(name)):
        return name
    layer, kind, group, unit, branch, values = match.groups()
    if layer is None:
        layer = f"b{group}{f'_{unit}' if unit else ''}.{'bn' if kind == 'bn' else 'conv'}_{branch}"
    return f"{layer}.{_KINDS.get(values, values)}"


class _Reader:
    """Read pieces of a .params file; no piece is larger than what is left of the file."""

    def __init__(self, file, size, path):
        self.file, self.path, self.left = file, path, size

    def error(self, what):
        return ValueError(f"{self.path} is no complete .params file of dense arrays: {what}; fetch it again")

    def claim(self, size):
        if size > self.left:
            raise self.error(f"{size} bytes are announced where {self.left} are left")
        self.left -= size
        return size

    def numbers(self, code):
        return struct.unpack(f"<{code}", self.file.read(self.claim(struct.calcsize(f"<{code}"))))

    def name(self):
        try:
            return self.file.read(self.claim(*self.numbers("Q"))).decode()
        except UnicodeDecodeError as error:
            raise self.error("a name is not text") from error

    def array(self):
        first, dims = self.numbers("I")[0], "q"
        if first == _MAGIC_STORAGE:
            if (storage := self.numbers("i")[0]) != _DENSE:
                raise self.error(f"an array has storage type {storage}, not dense")
            ndim = self.numbers("I")[0]
        elif first == _MAGIC_INT64:
            ndim = self.numbers("I")[0]
        else:
            ndim, dims = first, "I"
        if not 1 <= ndim <= 32:
            raise self.error(f"an array has {ndim} dimensions")
        shape = self.numbers(f"{ndim}{dims}")
        if min(shape) < 1:
            raise self.error(f"an array has the shape {shape}")
        _device, _number, flag = self.numbers("iii")
        if flag not in _DTYPES:
            raise self.error(f"an array has the unknown type {flag}")
        dtype = np.dtype(_DTYPES[flag])
        self.claim(math.prod(shape) * dtype.itemsize)
        return np.fromfile(self.file, dtype, math.prod(shape)).reshape(shape)
