"""The command python -m networks.pretrained: report on a file of weights, or convert it. Its flags: weight_flags.py."""
import shlex
import sys
from collections import Counter
from pathlib import Path

from networks import weight_files, weight_flags
from networks.names import home_of, official, taken_from
from networks.pretrained import FOLDER, fault_of, read_description
from networks.recognise import compare, networks_in, state_of

# The networks that a training starts from a file: which command with which flags.
_TRAININGS = {"CAMNet": "train.py --name X {backbone}--er_init {file}",
              "AffinityNet": "train_aff.py --name X {backbone}--init {file}",
              "LargeFOV": "train_seg.py --name X {backbone}--init {file}",
              "DeepLabV3": "train_seg.py --name X --network deeplabv3 {backbone}--init {file}"}


def main(words=None):
    args = weight_flags.parse(words)
    try:
        content = weight_files.read(args.file)
        if args.take:
            content = _part(content, args.take, args.file)
        found = networks_in(content.tensors, f"{Path(args.file).name} {content.beside.get('arch', '')}")
        if args.to:
            convert(content, found, args.file, args.to)
        else:
            print("\n".join(report(content, found, args.file)))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def report(content, found, path):
    """Return the lines about a file. found: of networks_in."""
    tensors = content.tensors
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.ndim)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    lines = [path, f"  format    {content.format}, {Path(path).stat().st_size / 2**20:.1f} MiB",
             f"  sha256    {weight_files.sha256(path)}",
             f"  holds     {len(tensors)} tensors, {numbers / 1e6:.2f} million numbers ({', '.join(kinds)})"]
    if content.beside:
        beside = [name if value is None else f"{name} {str(value)[:40]}" for name, value in content.beside.items()]
        lines.append(f"  beside    {', '.join(beside[:8])}{' ...' if len(beside) > 8 else ''}: not used")
    if faults := [text for name, tensor in tensors.items() if (text := fault_of(name, tensor, 1e-3))]:
        lines.append(f"  damaged   {faults[0]}{f' ({len(faults) - 1} more)' if faults[1:] else ''}")
    beside = Path(path).with_name("network.json")
    if beside.exists():
        described = read_description(beside)
        lines.append(f"  {beside.name}  beside it: {described['class']} of {', '.join(described['classes'])}")
    if not found:
        names = ", ".join(list(tensors)[:4])
        lines.append(f"  network   none that is known here; its names begin with {names}" if tensors else
                     "  network   none: there are no tensors in it")
    several = len({home_of(one.prefix) for one in found}) > 1
    for one in found:
        about = _about(one, tensors, path, several)
        lines += about[:1] if faults else about             # damaged weights are good for nothing
    return lines


def _about(one, tensors, path, several):
    """Return the lines about one network in a file, of several or not."""
    where = f", under {one.prefix.rstrip('.')}" if one.prefix else ""
    what = f", a {one.head}" if one.head else ""
    if one.outputs:
        what += f" of {one.classes} classes"
    lines = [f"  network   {one.title}{what}{where}"]
    if not one.backbone:
        return [*lines, "  fits      none of our networks"]
    if several:
        own = taken_from(one.prefix)
        return [*lines, f"            python -m networks.pretrained {shlex.quote(path)} --take {own} --to "
                f"{own.split('.')[-1]}.pth       (then name that file)"]
    state, name, file = state_of(one, tensors), one.backbone["name"], shlex.quote(path)
    if lacking := _lacking(one, state):
        return [*lines, f"  fits      none of our networks: of its backbone {len(lacking)} tensors are missing or of "
                f"another shape ({', '.join(lacking[:3])}{' ...' if lacking[3:] else ''}); fetch or save it again"]
    words = {"file": file, "backbone": f"{one.flags()} " if one.flags() else ""}
    for kind, command in _TRAININGS.items():
        classes = one.classes if kind == one.head and one.outputs else 20
        parts = compare(state, one.description(kind, [str(i) for i in range(classes)]))
        text = f"{len(parts['fit'])} tensors"
        for side, word in (("new", "new"), ("differ", "of another shape"), ("left", "left over")):
            layers = list(dict.fromkeys(name.split(".")[0] for name in parts[side]))
            if layers:
                text += f"; {word}: {', '.join(layers[:6])}{' ...' if layers[6:] else ''}"
        lines += [f"  fits      {kind}: {text}", f"            python {command.format(**words)}"]
    if one.head == "CAMNet" and one.outputs:
        lines.append(f"            python train.py --name X --cl_init {file}       (as the ordinary classifier)")
    return lines + _places(one, name, path)


def _lacking(one, state):
    """List the tensors that the backbone of a network needs and that are missing, or of another shape."""
    parts = compare(state, {"class": "", "backbone": one.backbone})
    return parts["new"] + parts["differ"]


def _places(one, name, path):
    """Say where a file goes so that a short name stands for it."""
    ending = "".join(Path(path).suffixes[-2:]) if path.endswith(".pth.tar") else Path(path).suffix
    if one.head == "CAMNet" and name == "resnet38d":
        return [f"  place     {FOLDER}/od_cam{ending}: then --cl_init cam and --er_init cam mean it",
                "            experiment/X/ckpt/014net_er.pth: then infer.py --name X --load_epo 14 makes its CAMs"]
    if one.head:
        return []
    stem = "resnet_38d" if name == "resnet38d" else name
    flags = f"{one.flags()} " if one.flags() else ""
    return [f"  place     {FOLDER}/{stem}{ending}: then {flags}--er_init imagenet (of train.py; of train_aff.py and "
            "train_seg.py --init imagenet) means it"]


def convert(content, found, path, target):
    """Write the tensors of a file, or of the one network in it, under plain names as float32."""
    target = Path(target)
    if target.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"--to {target}: the name must end in .pth or .safetensors")
    if target.exists():
        raise ValueError(f"{target} is there already: take another name, or delete it")
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent}: make it first, or name another")
    homes = {home_of(one.prefix): one for one in found}
    if len(homes) > 1:
        places = [taken_from(one.prefix) for one in homes.values()]
        raise ValueError(f"{path} holds {len(places)} networks ({', '.join(places)}): --take {places[0]} takes the "
                         "first")
    state = {official(name): tensor for name, tensor in content.tensors.items()}
    for one in homes.values():
        state = state_of(one, content.tensors)
    if not state:
        raise ValueError(f"{path} holds no tensors")
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    weight_files.write(target, state)
    left = len(content.tensors) - len(state)
    print(f"{target}: {len(state)} tensors, float32" + (f"; {left} others of {path} left out" if left else "")
          + f", sha256 {weight_files.sha256(target)}")


def _part(content, name, path):
    start = name.rstrip(".") + "."
    tensors = {n.removeprefix(start): tensor for n, tensor in content.tensors.items() if n.startswith(start)}
    if not tensors:
        tops = sorted({n.split(".")[0] for n in content.tensors})
        raise ValueError(f"{path} holds nothing under {name}; there are {', '.join(tops[:12])}")
    return weight_files.WeightFile(content.format, tensors)
