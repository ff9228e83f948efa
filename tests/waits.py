"""Where a program waits for a GPU, noted on PyTorch's fake tensors: see test_fake_cuda.py."""
import sys

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import ROOT

aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Note where a program waits for a device: `places`, "FILE FUNCTION" each. What is read there is 0."""

    def __init__(self, device="cuda"):
        super().__init__()
        self.device, self.places = device, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            self._note(args[0])
            return False if args[0].dtype is torch.bool else 0.0 if args[0].dtype.is_floating_point else 0
        if func is aten.nonzero.default:            # how many there are is a number too: here, all
            self._note(args[0])
            return args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.int64)
        out = func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[func is aten.copy_.default]
            if {source.device.type, out.device.type} == {"cpu", "cuda"}:
                free = kwargs.get("non_blocking") or args[2:] == (True,)
                assert not (free and out.device.type == "cpu"), f"{place()} reads what has not arrived"
                if not free:
                    self.places.append(place())
        return out

    def _note(self, tensor):
        if tensor.device.type == self.device:
            self.places.append(place())


def place():
    """Name the innermost function of the project that is running: "FILE FUNCTION"."""
    frame = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        if not path.startswith(("/", "<", ".", "tests/")):
            return f"{path} {frame.f_code.co_qualname.split('.<locals>')[0]}"
        frame = frame.f_back
    return "a test"


def as_list(tensor):
    return [as_list(part) for part in tensor] if tensor.ndim else tensor.item()


def as_array(tensor):
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))
