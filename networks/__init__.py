"""Networks: they have weights; tensors in, tensors out."""


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
