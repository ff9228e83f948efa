"""AEFT: adversarial erasing framework via triplet (ECCV 2022), the objective of aeft_gpp.

Darken what the network is surest of, and the rest must still look like the class: attract. An image of other classes
must look different from the places where the class is not: repel. Both compare what gated pyramid pooling gives.

    image (anchor) --net--> cam, logits, gpp
                             |
                       foreground --[below high]--> mask;  image * mask = positive --net--> gpp of the positive
    attract: gpp of the anchor ~ gpp of the positive;   repel: gpp of the anchor's background <> gpp of a negative
"""
import torch
import torch.nn.functional as F
from torch import nn

from methods.classification import of_present, recognised


class AEFT(nn.Module):
    """Classification, and from epoch `first_epoch` on the two terms of the triplet.

    net         network image -> (cam, logits, gpp): networks.gpp.GPPNet
    classified  images at the head of this process's batch that count for the classification, also of the larger
                batches from first_epoch on (the authors' 8 of 32); 0: all
    high, low   above high the foreground is erased; below low it is background
    weights     of classification, attract and repel;  margin  of repel
    on_cam      compare the CAMs, not what gated pyramid pooling makes of them
    gather, global_mean  with several processes: (rows (b, ...)) -> all processes' rows in the batch's order,
                differentiable; the mean of a tensor over all of them

    forward: {"image" (B, 3, H, W), "label" (B, C), "target" (B,) in [0, 1): what sample_negative draws from}, epoch ->
    {"loss", "loss_cls", "p_present", "p_absent" (methods.classification.recognised), and from first_epoch on
    "loss_attract", "loss_repel" (weights included), "erased": the mean of 1 - mask}.
    """

    most = None         # a number saves work: see methods.classification.of_present

    def __init__(self, net, first_epoch=18, classified=8, margin=0.5, high=0.6, low=0.2, weights=(1.0, 0.2, 0.15),
                 on_cam=False, gather=None, global_mean=None):
        super().__init__()
        self.net = net
        self.first_epoch, self.classified = first_epoch, classified
        self.margin, self.high, self.low = margin, high, low
        self.weights, self.on_cam = weights, on_cam
        self.gather, self.global_mean = gather or (lambda rows: rows), global_mean

    def forward(self, batch, epoch):
        image, label = batch["image"], batch["label"]
        cam, logits, gpp = self.net(image)                          # (B, C, h, w), (B, C), (B, C, h, w)
        weigh_cls, weigh_attract, weigh_repel = self.weights
        first = self.classified or len(label)
        loss_cls = weigh_cls * F.binary_cross_entropy_with_logits(logits[:first], label[:first])
        told = {"loss_cls": loss_cls, **recognised(logits[:first], label[:first], self.global_mean)}
        if epoch < self.first_epoch:
            return {"loss": loss_cls, **told}

        mask = positive_mask(foreground(cam, label, image.shape[2:], self.most), self.high)     # (B, 1, H, W)
        cam_positive, _, gpp_positive = self.net(image * mask)
        features, positive = (cam, cam_positive) if self.on_cam else (gpp, gpp_positive)
        loss_attract = weigh_attract * attract(features, positive, label)
        outside, whole = pooled(cam, features, label, self.low)                     # (B, C) each
        label, outside, whole = map(self.gather, (label, outside, whole))
        negative = sample_negative(label, self.gather(batch["target"]))
        loss_repel = weigh_repel * distance_loss(outside, whole, label, negative, self.margin)
        return {
            "loss": loss_cls + loss_attract + loss_repel,
            **told,
            "loss_attract": loss_attract,
            "loss_repel": loss_repel,
            "erased": 1 - mask.detach().mean(),
        }


def normalized(cam):
    """Scale the positive part of each class's map to [0, 1]: (B, C, h, w) -> (B, C, h, w), differentiable."""
    positive = cam.relu()
    low, high = positive.amin((2, 3), keepdim=True), positive.amax((2, 3), keepdim=True)
    return (positive - low - 1e-5).relu() / (high - low + 1e-5)


def foreground(cam, label, size, most=None):
    """Say how sure the network is of some present class: cam (B, C, h, w), label (B, C), (H, W) -> (B, 1, H, W).

    most: as of methods.classification.of_present; the result is the same
    """
    cam, label = of_present(cam, label, most)                                       # (B, N, h, w), (B, N)
    fine = F.interpolate(cam.relu(), size, mode="bilinear", align_corners=False)    # (B, N, H, W); ReLU comes first
    return (normalized(fine) * label[:, :, None, None]).amax(1, keepdim=True)


def positive_mask(foreground, high=0.6):
    """Keep the foreground where it is below high: (B, 1, H, W) -> (B, 1, H, W). Faint activation is dark too."""
    return foreground * (foreground < high)


def attract(gpp, gpp_masked, label):
    """Measure how far the means of what is left are from those of the image: (B, C, h, w) twice, (B, C) -> ()."""
    means = [maps.relu().mean((2, 3)) * label for maps in (gpp, gpp_masked)]        # (B, C) each
    return F.l1_loss(*means)


def repel(cam, gpp, label, negative, low=0.2, margin=0.5):
    """Push the background of each image away from an image of other classes; returns the mean loss of the near ones.

    cam, gpp (B, C, h, w); label (B, C); negative (B,): row of the batch, -1 where an image has none and takes no part
    """
    outside, whole = pooled(cam, gpp, label, low)
    return distance_loss(outside, whole, label, negative, margin)


def pooled(cam, gpp, label, low=0.2):
    """Average the features of each image outside its classes and everywhere: (B, C), (B, C), times the label."""
    features = gpp / (gpp.abs().amax((2, 3), keepdim=True) + 1e-5)                  # (B, C, h, w)
    background = (normalized(cam) * label[:, :, None, None] < low).float()          # (B, C, h, w)
    outside = (features * background).sum((2, 3)) / (background.sum((2, 3)) + 1e-5)
    cells = features.shape[2] * features.shape[3]
    whole = features.sum((2, 3)) / (cells + 1e-5)
    return outside * label, whole * label


def distance_loss(outside, whole, label, negative, margin=0.5):
    """Average margin - distance over the images nearer than that to their negative; 0 where they are four or fewer."""
    there = negative >= 0                                                           # (B,)
    distance = (outside - whole[negative.clamp(min=0)]).square().sum(1)             # (B,)
    near = there & (distance < margin)
    count = near.sum()
    loss = ((margin - distance).relu() * near).sum() / count.clamp(min=1)
    return torch.where(count > 4, loss, loss * 0)


def sample_negative(label, draw):
    """Choose for each image one that shares no class with it, uniformly.

    label (B, C); draw (B,) in [0, 1) -> (B,) rows of the batch, -1 where there is none. Images without a class have no
    negative and are none.
    """
    some = (label > 0).any(1)
    allowed = (label @ label.T == 0) & some[:, None] & some                         # (B, B)
    count = allowed.sum(1)                                                          # (B,)
    number = (draw.to(label.device) * count).long().minimum(count - 1)
    chosen = (allowed.cumsum(1) > number[:, None]).to(torch.uint8).argmax(1)        # the first row that exceeds it
    return chosen.masked_fill(count == 0, -1)


def draw(label, generator=None):
    """Draw, for the training set, what sample_negative chooses by: label (B, C) -> (B,) in [0, 1)."""
    return torch.rand(len(label), generator=generator)
