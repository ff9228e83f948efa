"""Networks: they have weights; tensors in, tensors out.

A network describes itself in a dict that JSON can hold (network.json beside its weights), and build makes it again:

    {"class": "CAMNet", "classes": ["dog", ...], "backbone": {"name", "output_stride", "norm", and of resnet38d "width",
     "blocks", "dilation", "dropout"}, "head": {further arguments of the class}, "init": what it started from}
"""
CAM_NETWORKS = ("CAMNet", "GPPNet")                 # give (cam, logits, ...)
PIXEL_NETWORKS = ("LargeFOV", "DeepLabV3")          # classify pixels


def build(description):
    """Make the network, with random weights, that a description or a network.json's path describes.

    Raises ValueError for a file that is missing or damaged, or that describes no network.
    """
    from networks import affinity, backbones, cam, deeplab, gpp, pretrained

    where, heads = "the description", {"CAMNet": cam.CAMNet, "GPPNet": gpp.GPPNet,
                                       "AffinityNet": affinity.AffinityNet, "LargeFOV": deeplab.LargeFOV,
                                       "DeepLabV3": deeplab.DeepLabV3}
    if not isinstance(description, dict):
        where, description = description, pretrained.read_description(description)
    try:
        kind, backbone, head = heads[description["class"]], dict(description["backbone"]), dict(description["head"])
        if kind is not affinity.AffinityNet:
            head["num_classes"] = len(description["classes"])
        if kind is not cam.CAMNet:
            head["width"] = backbone.get("width", 1.0)
        arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in backbone.items()}
        return kind(backbone=backbones.build(**arguments), **head)
    except Exception as error:      # what torch and timm raise at odd values has no common class
        if isinstance(error, ValueError) and where == "the description":
            raise
        raise ValueError(f"{where} describes no network ({type(error).__name__}: {str(error)[:500]}): delete it and "
                         "repeat the command that trained the network, which writes it again") from None


def describe(kind, classes, settings, head=None, init=""):
    """Describe the network of class `kind` that a training stage's settings ask for: see build."""
    from networks.backbones import shape_of

    backbone = {"name": settings.backbone, "output_stride": settings.output_stride, "norm": settings.norm}
    backbone |= {name: getattr(settings, name) for name in shape_of(settings.backbone)}
    return {"class": kind, "classes": list(classes), "init": init, "head": dict(head or {}), "backbone": {
        name: list(value) if isinstance(value, tuple) else value for name, value in backbone.items()}}


def parameter_groups(net, lr, weight_decay, new_layers=()):
    """Sort the trainable parameters into the authors' four groups for SGD.

    new_layers  modules, or names of modules, that start untrained: 10x the rate
    Returns [weights 1x, biases 2x, new layers' weights 10x, new layers' biases 20x], decay on weights only; each a dict
    {"params", "lr", "weight_decay"}. The BatchNorm of a net with norm="train" counts as weight and bias.
    Raises ValueError for a name that the net lacks.
    """
    modules = dict(net.named_modules())
    fresh = set()
    for layer in new_layers:
        if isinstance(layer, str):
            if layer not in modules:
                raise ValueError(f"no layer {layer!r} in {type(net).__name__}")
            layer = modules[layer]
        fresh.update(id(p) for p in layer.parameters())
    groups = [{"params": [], "lr": factor * lr, "weight_decay": decay}
              for factor, decay in ((1, weight_decay), (2, 0), (10, weight_decay), (20, 0))]
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            kind = int(name.endswith("bias")) + 2 * (id(parameter) in fresh)
            groups[kind]["params"].append(parameter)
    return groups
