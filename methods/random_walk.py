"""Random walk: spread the scores of an image along the affinities of its cells. Source: AffinityNet, infer_aff."""
import warnings

import torch
import torch.nn.functional as F

from methods.affinity import effective_radius, offsets, pair_affinity
from methods.cam import background, to_device


@torch.no_grad()
def random_walk(scores, affinity, radius=5, beta=8, logt=8):
    """Let scores (R, h, w) walk 2^logt steps; returns (R, h, w).

    affinity  (P, N), one image's row of methods.affinity.pair_affinity at the same radius; affinity^beta are the
              weights of the steps
    The authors square T until it is T^256, a full matrix. Each step of few rows through the sparse T gives the same.
    (A stencil, 69 shifted multiply-adds a step, does too; on a CPU it takes several times as long.)
    """
    rows, h, w = scores.shape
    # In float64: over 256 steps the rounding of T in float32 adds up to 1e-5 of a score.
    step = transition(affinity.double(), h, w, radius, beta)
    walked = scores.flatten(1).t().double().contiguous()                            # (h w, R)
    for _ in range(2**logt):
        walked = step @ walked
    return walked.t().reshape(rows, h, w).to(scores.dtype).contiguous()


@torch.no_grad()
def walk_cams(net, image, cams, alpha=16, beta=8, logt=8, radius_rule="psa"):
    """Spread the CAMs of an image along the affinities that a network sees in it.

    net  AffinityNet in eval mode;  image (1, 3, H, W), normalised;  cams (K, H, W);  alpha  the background's
    Returns (K + 1, H', W') float32, the background first: H and W rounded up to multiples of net.image_multiple (8
    with the paper's backbone), where the image is 0.
    """
    device, (height, width) = next(net.parameters()).device, image.shape[2:]
    stride, multiple = net.stride, net.image_multiple
    scores = start_scores(cams.to(device, non_blocking=True), alpha, stride, multiple)              # (K + 1, h, w)
    features = net(to_device(F.pad(image, (0, -width % multiple, 0, -height % multiple)), device))  # (1, D, h, w)
    radius = effective_radius(*features.shape[2:], rule=radius_rule)
    affinity = pair_affinity(features, radius)[0]                                   # (P, N)
    walked = random_walk(scores, affinity, radius, beta, logt)
    return F.interpolate(walked[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]


def transition(affinity, h, w, radius=5, beta=8):
    """Give the transposed T: sparse (h w, h w), each row the weights of a cell's neighbours and its own, sum 1.

    At most 69 entries a row at radius 5. Cells at the border have few neighbours, or none, and keep what they have.
    Raises ValueError for affinities of another map or radius.
    """
    steps, margin = offsets(radius), max(radius - 1, 0)
    shape = len(steps), h - margin, w - 2 * margin
    if tuple(affinity.shape) != (shape[0], shape[1] * shape[2]):
        raise ValueError(f"affinities {tuple(affinity.shape)} are not those of {h}x{w} cells at radius {radius}: "
                         f"{(shape[0], shape[1] * shape[2])}")
    weight = (affinity**beta).reshape(shape)
    # A pair of cells (a, b), b = a + (y, x), adds its weight twice: at a for the step (y, x) ...
    out = [F.pad(plane, (margin, margin, 0, margin)) for plane in weight]
    # ... and at b for the step (-y, -x). In this order the columns of a row ascend.
    back = [F.pad(plane, (margin + x, margin - x, y, margin - y)) for plane, (y, x) in zip(weight, steps)]
    weight = torch.stack([*back[::-1], weight.new_ones(h, w), *out])                # (69, h, w)
    weight = (weight / weight.sum(0)).flatten(1).t()                                # (h w, 69)

    distance = [y * w + x for y, x in steps]
    # 32-bit indices: MKL would convert longer ones at each step.
    distance = torch.tensor([-d for d in distance[::-1]] + [0] + distance, dtype=torch.int32)
    there = weight != 0
    starts = F.pad(there.sum(1).cumsum(0), (1, 0)).int()
    row, offset = there.nonzero(as_tuple=True)          # waits for the GPU once: how many entries are there?
    columns = row.int().add_(distance.to(weight.device, non_blocking=True)[offset])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, weight[row, offset], (h * w, h * w), check_invariants=False)


def start_scores(cams, alpha, stride=8, multiple=8):
    """Pool CAMs (K, H, W) and their background of `alpha` over cells of `stride` pixels: (K + 1, h, w), 0 outside.

    h and w are those of the image padded to multiples of `multiple` pixels.
    """
    scores = torch.cat([background(cams, alpha), cams])
    height, width = scores.shape[1:]
    return F.avg_pool2d(F.pad(scores, (0, -width % multiple, 0, -height % multiple)), stride)
