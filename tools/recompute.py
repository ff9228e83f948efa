"""Less memory for more time: keep what goes into a module, and compute the rest again in the backward pass."""
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class InParts(nn.Module):
    """Compute a batch part by part, so that the activations of one part at a time are in memory.

    Outputs and gradients are those of the network, but for rounding and dropout's draws; BatchNorm that is trained
    sees one part at a time. forward: a batch, its size a multiple of `parts` -> what the network gives.
    """

    def __init__(self, network, parts):
        super().__init__()
        self.network = network
        self.parts = parts

    def forward(self, batch):
        outputs = [recomputed(self.network, part) for part in batch.chunk(self.parts)]
        if isinstance(outputs[0], torch.Tensor):
            return torch.cat(outputs)
        return tuple(torch.cat(pieces) for pieces in zip(*outputs))


def recomputed(module, *inputs):
    """Call a module, keeping for the backward pass its inputs alone. Dropout draws the same the second time."""
    if not torch.is_grad_enabled():
        return module(*inputs)
    return checkpoint(module, *inputs, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _statistics_kept(module)))


@contextmanager
def _statistics_kept(module):
    """Run BatchNorm a second time on the same batch without counting it twice."""
    layers = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:                        # checkpoint stops by an exception, once it has what it needs
        for layer, (momentum, batches) in zip(layers, before):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(batches)
