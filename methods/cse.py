"""Class-specific erasing, the idea of OC-CSE (ICCV 2021).

Erase one class from the image with its own CAM and show the rest to a frozen ordinary classifier (OC). The erased
class must be gone, so its CAM has to cover all of it. The others must still be there, so it has to stop at their
border.

    image --cgnet--> cam --target's row, ReLU, / max--> mask
      |                                                   |
      +----------------- * (1 - mask) <-------------------+
                              |
                           erased --oc--> logits: BCE with the label set without the target
"""
import torch
import torch.nn.functional as F
from torch import nn

from methods.targets import choose, sample_target  # noqa: F401 (callers import sample_target from here)


class CSE(nn.Module):
    """The CGNet's objective: classification plus lambda times the erasing loss.

    cgnet       network image -> (cam, logits), trained
    oc          the same, frozen here: eval mode, its weights get no gradient; its input does
    cc_init, cc_slope   lambda = cc_init + cc_slope * epoch
    mask_norm   "batch" | "image": see erase
    sampling    "uniform": the class to erase is the batch's "target", or drawn here; others: methods.targets
    global_max, global_mean   with several processes: maximum (differentiable) and mean of a tensor over all of them

    forward: {"image" (B, 3, H, W), "label" (B, C), optional "target" (B,), "index" (B,)}, epoch -> {"loss", "loss_cls",
    "loss_cse" (lambda included), "p_target_erased", "p_rest_erased", "erased"}: the probabilities that the OC still
    gives, after erasing, to the erased class and to the remaining labels (nan where there is none); and how much of
    an image is erased, the mean of its mask.
    """

    def __init__(self, cgnet, oc, cc_init=0.3, cc_slope=0.05, mask_norm="batch", global_max=None, global_mean=None,
                 sampling="uniform"):
        super().__init__()
        self.cgnet = cgnet
        self.oc = oc.requires_grad_(False).eval()
        self.cc_init, self.cc_slope = cc_init, cc_slope
        self.mask_norm, self.sampling = mask_norm, sampling
        self.global_max, self.global_mean = global_max, global_mean

    def train(self, mode=True):
        super().train(mode)
        self.oc.eval()
        return self

    def forward(self, batch, epoch):
        image, label = batch["image"], batch["label"]
        cam, logits = self.cgnet(image)                                                 # (B, C, h, w), (B, C)
        target = choose(self.sampling, batch, cam, epoch)                               # (B,)
        remaining, has_target = without(label, target)                                  # (B, C), (B,)
        erased, mask = erase(image, cam, target, self.mask_norm, self.global_max)       # (B, 3, H, W), (B, 1, H, W)
        logits_erased = self.oc(erased)[1]                                              # (B, C)

        rest = (remaining > 0).float() * has_target[:, None]                            # (B, C)
        counts = torch.stack([has_target.sum().float(), rest.sum()])                    # (2,)
        # Each process divides by the mean over the processes, so that the mean of their losses is the batch's.
        images, others = self.global_mean(counts) if self.global_mean else counts
        lam = self.cc_init + self.cc_slope * epoch
        loss_cls = F.binary_cross_entropy_with_logits(logits, label)
        per_image = F.binary_cross_entropy_with_logits(logits_erased, remaining, reduction="none").mean(1)      # (B,)
        loss_cse = lam * torch.where(has_target, per_image, 0).sum() / images.clamp(min=1e-6)

        probability = torch.sigmoid(logits_erased.detach())                             # (B, C)
        gone = F.one_hot(target.clamp(min=0), label.shape[1]) * has_target[:, None]     # (B, C)
        return {
            "loss": loss_cls + loss_cse,
            "loss_cls": loss_cls,
            "loss_cse": loss_cse,
            "p_target_erased": (probability * gone).sum() / images,
            "p_rest_erased": (probability * rest).sum() / others,
            "erased": mask.detach().mean((1, 2, 3)).sum() / images,
        }


def without(label, target):
    """Remove the target from the labels: (B, C), (B,) -> remaining (B, C), has_target (B,) bool."""
    has_target = target >= 0
    row = F.one_hot(target.clamp(min=0), label.shape[1]).to(label) * has_target[:, None]
    return label * (1 - row), has_target


def erase(image, cam, target, mask_norm="batch", global_max=None):
    """Erase the target class from each image, softly, with its own CAM.

    image (B, 3, H, W) normalised; cam (B, C, h, w) without ReLU; target (B,), -1 leaves the image as it is
    mask_norm   "batch": divide the masks by their maximum over the batch, as the authors' code does (the result
                depends on which images share a batch); "image": each by its own, as the paper's text says
    Returns erased (B, 3, H, W) = image * (1 - mask) and mask (B, 1, H, W) in [0, 1]; gradients pass through both.
    """
    if mask_norm not in ("batch", "image"):
        raise ValueError(f"mask_norm must be batch or image, not {mask_norm!r}")
    rows = torch.arange(len(target), device=target.device)
    mask = upsampled(cam[rows, target.clamp(min=0)][:, None], image)                    # (B, 1, H, W)
    return erase_by(image, torch.where((target >= 0)[:, None, None, None], mask, 0), mask_norm, global_max)


def upsampled(cam, image):
    """Bring maps to the pixels of an image and cut off what is negative: (B, N, h, w) -> (B, N, H, W)."""
    return F.interpolate(cam.float(), image.shape[2:], mode="bilinear", align_corners=False).relu()


def erase_by(image, mask, mask_norm, global_max=None):
    """Erase what a mask (B, 1, H, W) shows, once it is divided by its maximum: see erase, also for what is returned."""
    peak = mask.max() if mask_norm == "batch" else mask.amax((1, 2, 3), keepdim=True)
    if mask_norm == "batch" and global_max:
        peak = global_max(peak)
    mask = mask / (peak + 1e-5)
    return image * (1 - mask), mask
