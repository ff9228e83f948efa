"""Files of weights, read whatever their format and their ending, and written. Nothing in them is run.

What a file is, its first bytes tell: torch.save's of today (a zip) and of before 2020, safetensors, MXNet's .params.
"""
import errno
import hashlib
import io
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.serialization import safe_globals

from networks import mxnet

TORCH_ENDINGS = (".pth", ".pt", ".pth.tar", ".ckpt", ".bin")
ENDINGS = (*TORCH_ENDINGS, ".safetensors", ".params")
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_FIRST_BYTES = {        # what people download in place of weights
    b"version https://git-lfs": "a pointer of Git LFS, not the weights: fetch them with git lfs pull",
    b"\x1f\x8b": "a packed archive: unpack it and name the file in it",
    b"BZh": "a packed archive: unpack it and name the file in it",
    b"7z\xbc\xaf": "a packed archive: unpack it and name the file in it",
    b"Rar!": "a packed archive: unpack it and name the file in it",
    b"\x89HDF": "HDF5, the format of Keras: convert it with the library that wrote it",
    b"\x93NUMPY": "an array of numpy, not weights",
    b"\x80": "a pickle that torch.save did not write; it could hold a program, so it was not opened",
}
# Globals of a pickle that stand for settings beside the weights. Each is replaced by an object that does nothing.
_SETTINGS = re.compile(r"argparse\.Namespace|types\.SimpleNamespace|collections\.(defaultdict|deque)|"
                       r"(builtins|__builtin__)\.(dict|list|int|float|tuple|frozenset)|datetime\.\w+|pathlib[\w.]*\."
                       r"\w*Path|(omegaconf|easydict|yacs|addict|ml_collections|pytorch_lightning|lightning|"
                       r"lightning_fabric|mmcv|mmengine)\.[\w.]+")
_NUMPY = re.compile(r"numpy\.(dtype|ndarray|dtypes\.\w+|_?core\.multiarray\.(scalar|_reconstruct))")


@dataclass
class WeightFile:
    """What a file holds: tensors by their names, those of a dict in a dict joined by dots."""
    format: str
    tensors: dict = field(default_factory=dict)     # {"state_dict.conv1a.weight": tensor}
    beside: dict = field(default_factory=dict)      # what else lies there: {"epoch": 3, "optimizer": None}; None: a lot
    arrays: list = field(default_factory=list)      # names of numpy's arrays, which are not read


def read(path):
    """Read a file of weights; ValueError where it is none, is damaged or holds a program, with what can be done."""
    path = _existing(path)
    with open(path, "rb") as file:
        first, size = file.read(512), path.stat().st_size
    if path.suffix == ".params" or first[:8] == struct.pack("<Q", 0x112):
        arrays = {mxnet.torch_name(name): array for name, array in read_params(path).items()}
        thousand = [name for name in arrays if name.startswith("linear1000.")]      # ImageNet's classes: nobody's head
        return WeightFile("MXNet's .params", {n: torch.from_numpy(a) for n, a in arrays.items() if n not in thousand},
                          dict.fromkeys(thousand))
    if path.suffix == ".safetensors" or _is_safetensors(first, size):
        return WeightFile("safetensors", _read_safetensors(path))
    if first.startswith(b"PK\x03\x04"):
        return _of_torch("torch.save's", path, _read_zip(path))
    if first.startswith(_OLD_TORCH):
        return _of_torch("torch.save's of before 2020", path, _guarded(path, _read_old))
    ours = path.name.lower().endswith(TORCH_ENDINGS)
    if first[257:262] == b"ustar":
        raise ValueError(f"{path} is a packed archive: unpack it and name the file in it")
    if first[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not weights: the download ended at a page that asks something. Open "
                         "the link in a browser and save the file itself")
    if not (ours and _OLD_TORCH.startswith(first)):
        for begin, what in _FIRST_BYTES.items():
            if first.startswith(begin):
                raise ValueError(f"{path} is {what}")
    if ours:
        raise ValueError(f"{path}: cut short, damaged, or not written by torch.save; fetch or save it again")
    raise ValueError(f"{path}: weights are a .params, .pth or .safetensors file (of torch.save also "
                     f"{', '.join(TORCH_ENDINGS[1:])}), and this is none of them")


def read_params(path):
    """Read an MXNet .params file without MXNet: {name: numpy array}, names such as arg:conv1a_weight.

    Knows three layouts of dense arrays: of 2016 (no magic number per array), with int64 shapes, with a storage type.
    Raises ValueError for anything else, a cut or altered file included.
    """
    path = _existing(path)
    with open(path, "rb") as file:
        return mxnet.read_arrays(file, path.stat().st_size, path)


def write(path, state):
    """Write {name: tensor} as .safetensors, or with torch.save; the file is complete or absent."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}      # one storage each
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file
            save_file(state, aside)
        else:
            torch.save(state, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _existing(path):
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file of weights in it")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; pretrained/README.md says where weights come from")
    return path


# ---- safetensors ----

def _is_safetensors(first, size):
    return len(first) > 8 and struct.unpack("<Q", first[:8])[0] <= size - 8 and first[8:].lstrip().startswith(b'{"')


def _read_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:      # SafetensorError and whatever a damaged header leads to
        raise ValueError(f"{path}: not a complete safetensors file ({error}); fetch it again") from error


# ---- torch.save ----

def _read_zip(path):
    """Read what torch.save writes today: a zip with a pickle and a record of bytes for each tensor."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:                   # zipfile names no set of what a damaged file may raise
        names = ["data.pkl"]            # said below
    if any(name.endswith("constants.pkl") for name in names):
        raise ValueError(f"{path} holds a program (TorchScript), so it was not opened: where it was made, save "
                         "model.state_dict()")
    if not any(name.split("/")[-1] == "data.pkl" for name in names):
        raise ValueError(f"{path} is an archive with {', '.join(names[:3]) or 'nothing'} in it, not written by "
                         "torch.save: unpack it and name the file in it")
    return _guarded(path, _read_checked_zip)


def _read_checked_zip(path):
    with zipfile.ZipFile(path) as archive:              # torch itself does not look at the check sums
        if any(record.compress_type for record in archive.infolist()) or archive.testzip():
            raise zipfile.BadZipFile("a record is not as torch.save wrote it")
        program = next(archive.read(name) for name in archive.namelist() if name.split("/")[-1] == "data.pkl")
    with safe_globals(_inert([pickletools.genops(program)])):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_old(path):
    """Read what torch.save wrote until 2020. torch makes room for what such a file announces, so that is seen first."""
    data = io.BytesIO(path.read_bytes())
    pickles = [list(pickletools.genops(data)) for _ in range(4)]    # the fourth tells of the tensors
    if any(isinstance(number, int) and number > len(data.getbuffer()) for _, number, _ in pickles[3]):
        raise ValueError("it announces more than it holds")
    data.seek(0)
    with safe_globals(_inert(pickles)):
        return torch.load(data, map_location="cpu", weights_only=True)


def _guarded(path, read_it):
    """Call read_it(path) and put what it raises into words."""
    try:
        return read_it(path)
    except Exception as error:          # a damaged pickle can raise nearly anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):      # EINVAL: damaged, too
            raise
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            problem = (f"holds a program or objects beside tensors{f' ({named[1]})' if named else ''}, so it was not "
                       "opened; save a plain state dict where it was made: torch.save(model.state_dict(), PATH)")
        else:
            problem = "cut short, damaged, or not written by torch.save; fetch or save it again"
        raise ValueError(f"{path}: {problem}") from error


def _inert(pickles):
    """Give, for torch's safe_globals, what the pickles' harmless globals are replaced by. Others stay refused."""
    stand_ins = []
    for program in pickles:
        for code, argument, _ in program:
            if code.name == "GLOBAL":
                name = argument.replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)
                if _NUMPY.fullmatch(name):
                    stand_ins.append((_Nothing, name))
                elif _SETTINGS.fullmatch(name):
                    stand_ins.append((_EmptyDict, name))
    return stand_ins


class _Nothing:
    """Takes the place of a number of numpy in a pickle."""

    def __new__(cls, *_):
        return super().__new__(cls)

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


class _EmptyDict:
    """Takes the place of an object of settings in a pickle: torch fills only such dicts."""

    def __new__(cls, *_):
        return OrderedDict()


def _of_torch(form, path, content):
    """Collect the tensors of what torch.save wrote, however deep they lie."""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {type(content).__name__}, not a dict of tensors")
    found = WeightFile(form)
    _collect(path, content, "", found)
    if not found.tensors and found.arrays:
        raise ValueError(f"{path} holds arrays of numpy ({found.arrays[0]} ...) and no tensors. Where it was made: "
                         "torch.save({name: torch.from_numpy(array) for name, array in state.items()}, PATH)")
    return found


def _collect(path, part, prefix, found, depth=0):
    for key, value in part.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str):
            if isinstance(value, torch.Tensor) and not prefix:
                raise ValueError(f"{path}: entry {key!r} is no tensor of a network: a name is text")
            found.beside[prefix.rstrip(".") or name] = None          # an optimizer counts its tensors
        elif isinstance(value, torch.Tensor):
            if name in found.tensors:
                raise ValueError(f"{path}: {name} is there twice")
            found.tensors[name] = _plain_tensor(path, name, value)
        elif isinstance(value, dict) and value and depth < 6 and not re.match("optim|(lr_)?sched|scaler", key.lower()):
            _collect(path, value, name + ".", found, depth + 1)
        elif isinstance(value, _Nothing):
            found.arrays.append(name)
            found.beside[name] = None
        else:
            words = isinstance(value, list) and all(isinstance(word, str) for word in value)
            found.beside[name] = value if words or isinstance(value, int | float | str) else None


def _plain_tensor(path, name, value):
    if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_meta:
        raise ValueError(f"{path}: entry {name!r} is no tensor of plain numbers; only a plain state dict can be loaded")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{path}: entry {name!r} announces more numbers than the file holds: damaged")
    return value.detach()
