"""Which network a file's tensors belong to, by names and shapes alone: the way back from a file to networks.build.

Backbones: ours, and those of timm and torchvision that people bring most, ResNets and EfficientNets.
"""
import difflib
import re
from dataclasses import dataclass

import torch

from networks import backbones, build
from networks.names import home_of, official, outwards, without_wrappers

# A tensor that only this kind of network has.
_ANCHORS = {"resnet38d": "b2.bn_branch2a.weight", "resnet": "layer1.0.conv1.weight", "wheel": backbones.WHEELS_FIRST,
            "efficientnet": "blocks.0.0.conv_dw.weight"}
_RESNETS = {(2, 2, 2, 2, False): ("resnet18",), (3, 4, 6, 3, False): ("resnet34",),
            (3, 4, 6, 3, True): ("resnet50", "resnet50d", "resnext50_32x4d", "wide_resnet50_2", "seresnet50"),
            (3, 4, 23, 3, True): ("resnet101", "resnet101d", "resnext101_32x8d", "wide_resnet101_2"),
            (3, 8, 36, 3, True): ("resnet152", "resnet152d")}
_EFFICIENTNETS = (*backbones.LITE, "tf_efficientnet_lite3", "tf_efficientnet_lite4",
                  *(f"tf_efficientnet_b{i}" for i in range(8)))


@dataclass
class Found:
    """A network in a file."""
    prefix: str         # what stands before its backbone's names
    backbone: dict      # as in networks.build's description; empty where it is not recognised
    title: str          # for people
    head: str = ""      # the network's class in networks.build; empty: it has none
    outputs: int = 0    # of its last layer; 0 where it has none

    @property
    def classes(self):
        """The number of object classes: pixel networks have one output more, the background."""
        return self.outputs - (self.head in ("LargeFOV", "DeepLabV3"))

    def flags(self):
        """Give the words of a command line that ask for this backbone."""
        name, words = self.backbone["name"], []
        if name != "resnet38d":
            return f"--backbone {name} --output_stride {self.backbone['output_stride']}"
        if self.backbone["width"] != 1:
            words.append(f"--width {self.backbone['width']:g}")
        if tuple(self.backbone["blocks"]) != backbones.PAPER_BLOCKS:
            words.append("--blocks " + " ".join(map(str, self.backbone["blocks"])))
        return " ".join(words)

    def description(self, kind, classes):
        """Describe a network of class `kind` on this backbone, for networks.build."""
        return {"class": kind, "classes": list(classes), "backbone": dict(self.backbone), "head": {}, "init": ""}


def networks_in(tensors, hint=""):
    """List the networks that {name: tensor} holds. hint: words in which a name of timm may stand, as the file's own."""
    found = []
    for kind, anchor in _ANCHORS.items():
        for name in tensors:
            prefix = name.removesuffix(anchor)
            if prefix == name or prefix and not prefix.endswith("."):
                continue
            shapes = {n[len(prefix):]: tuple(t.shape) for n, t in tensors.items() if n.startswith(prefix)}
            around = {}
            for start in outwards(prefix):
                around.update({n[len(start):]: tuple(t.shape) for n, t in tensors.items()
                               if n.startswith(start) and n[len(start):] not in around})
            maker = _resnet38d if kind == "resnet38d" else _of_timm
            one = Found(prefix, *maker(kind, shapes, hint))
            one.head, one.outputs = _head(kind, around)
            found.append(one)
    return found


def state_of(found, tensors):
    """Give the tensors of a network in a file, {official name: tensor}, those of timm's networks by timm's names."""
    home = home_of(found.prefix)
    state = {without_wrappers(name.removeprefix(home)): tensor for name, tensor in tensors.items()
             if name.startswith(home)}
    if found.backbone and backbones.WHEELS_FIRST in state:
        needed = shapes_of({"class": "", "backbone": found.backbone})
        state = backbones.names_of_wheel(state, needed)
    return state


def compare(tensors, description):
    """Compare names and shapes with a network's: names that fit, are missing, have another shape, are left over."""
    needed = shapes_of(description)
    names = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    needed = {n: s for n, s in needed.items() if n in names or not n.endswith("num_batches_tracked")}
    return {"fit": [n for n in needed if names.get(n) == needed[n]], "new": [n for n in needed if n not in names],
            "differ": [n for n in needed if n in names and names[n] != needed[n]],
            "left": [n for n in names if n not in needed]}


def explain(tensors, net, hint=""):
    """Say why tensors do not fill the backbone of a network, and what can be done."""
    here = networks_in({official(name): tensor for name, tensor in net.state_dict().items()})
    there = networks_in(tensors, hint)
    look = "python -m networks.pretrained FILE says what a file holds"
    if not there:
        return f"weights of another network? {look}"
    theirs = there[0]
    if not theirs.backbone:
        return f"it holds {theirs.title}, another network. {look}"
    mine = here[0] if here else None
    if mine and mine.backbone.get("name") == theirs.backbone["name"]:
        if theirs.flags() == mine.flags():
            return "the file is incomplete: fetch or save it again"
        return (f"weights of another width or depth: it holds {theirs.title}, this network is {mine.title}. "
                f"{theirs.flags() or 'Without --width and --blocks'} makes them equal")
    return (f"it holds {theirs.title}, this network has another backbone: "
            f"{theirs.flags() or '--backbone resnet38d'} makes them equal")


def _resnet38d(_, shapes, __):
    width = shapes.get("conv1a.weight", (0,))[0] / 64
    blocks = [sum(bool(re.fullmatch(rf"b{group}(_\d+)?\.bn_branch2a\.weight", name)) for name in shapes)
              for group in range(2, 8)]
    title = "ResNet38d" + (f" of width {width:g}" if width != 1 else "") + (
        f" with blocks {' '.join(map(str, blocks))}" if tuple(blocks) != backbones.PAPER_BLOCKS else "")
    if not width:
        return {}, "part of a ResNet38d, whose first layer is missing"
    return {"name": "resnet38d", "output_stride": 8, "norm": "frozen", "width": width, "blocks": blocks,
            "dilation": list(backbones.PAPER_DILATION), "dropout": [0.3, 0.5]}, title


def _of_timm(kind, shapes, hint):
    """Find the name in timm of a ResNet or an EfficientNet: the candidate whose tensors all have these shapes."""
    if kind == "resnet":
        depth = tuple(len({n.split(".")[1] for n in shapes if n.startswith(f"layer{i}.")}) for i in range(1, 5))
        candidates, title = _RESNETS.get((*depth, "layer1.0.conv3.weight" in shapes), ()), "a ResNet"
    else:
        candidates, title = _EFFICIENTNETS, "an EfficientNet"
        squeezed = any("se.conv_reduce" in name or "_se_reduce" in name for name in shapes)
        candidates = [name for name in candidates if ("lite" not in name) == squeezed]
    near = difflib.get_close_matches(hint, candidates, n=1, cutoff=0.3)
    for name in dict.fromkeys([*near, *candidates]):
        for stride in (8, 16, 32):
            backbone = {"name": name, "output_stride": stride, "norm": "frozen"}
            try:
                needed = shapes_of({"class": "", "backbone": backbone})
            except ValueError:          # no such stride
                continue
            own = backbones.names_of_wheel(shapes, needed) if kind == "wheel" else shapes
            more = any(n.startswith(("layer", "blocks.")) and n not in needed for n in own)
            if not more and all(own.get(n) == shape for n, shape in needed.items()
                                if not n.endswith("num_batches_tracked")):
                return backbone | {"output_stride": max(stride, 16)}, name
            break
    return {}, title + " that timm builds in another way"


def shapes_of(description):
    """Give {official name: shape} of a network, or of a backbone alone (class ""), without allocating it."""
    with torch.device("meta"):
        net = build(description) if description["class"] else backbones.build(**description["backbone"])
    return {official(name): tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def _head(kind, shapes):
    """Tell the class of networks.build by the layers behind the backbone, and the outputs of the last one."""
    has = shapes.keys()
    if {"b8.weight", "b9.weight"} <= has:
        return "LargeFOV", shapes["b9.weight"][0]
    if "classifier.4.weight" in has:
        return "DeepLabV3", shapes["classifier.4.weight"][0]
    if {"f8_3.weight", "f8_4.weight", "f8_5.weight", "f9.weight"} <= has and "fc8.weight" not in has:
        return "AffinityNet", 0
    if "fc8.weight" in has:
        if {"fc9.weight", "gconv3.att_p.0.weight"} <= has:
            return "GPPNet", shapes["fc9.weight"][0]
        whole = not {"f9.weight", "fc9.weight"} & has       # SEAM's has features beside
        return "CAMNet" if whole else "", shapes.get("fc9.weight", shapes["fc8.weight"])[0]
    last = next((name for name in ("fc.weight", "classifier.weight", "_fc.weight") if name in has), None)
    return "", shapes[last][0] if last else 0
