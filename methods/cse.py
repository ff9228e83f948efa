"""Class-specific erasing, the idea of OC-CSE (ICCV 2021).

Erase one class from the picture with its own CAM and show the rest to a frozen ordinary classifier (OC). The erased
class must be gone: so the CAM has to cover all of it. The others must still be there: so it has to stop at their
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


class CSE(nn.Module):
    """The CGNet's objective: classification plus lambda times the erasing loss.

    cgnet       network image -> (cam, logits), trained
    oc          the same, frozen here: eval mode, no gradient for its weights. Its input does get one
    cc_init, cc_slope   lambda = cc_init + cc_slope * epoch
    mask_norm   "batch" | "image": see erase
    global_max  under several processes: the maximum over all of them, differentiable
    global_mean under several processes: the mean of a tensor over all of them

    forward: {"image" (B, 3, H, W), "label" (B, C), optional "target" (B,)}, epoch -> {"loss", "loss_cls",
    "loss_cse" (lambda included), "p_target_erased", "p_rest_erased"}: the last two are the probabilities that the OC
    gives, after erasing, to the erased class and to the labelled rest (nan where there is none).
    """

    def __init__(self, cgnet, oc, cc_init=0.3, cc_slope=0.05, mask_norm="batch", global_max=None, global_mean=None):
        super().__init__()
        self.cgnet = cgnet
        self.oc = oc.requires_grad_(False).eval()
        self.cc_init = cc_init
        self.cc_slope = cc_slope
        self.mask_norm = mask_norm
        self.global_max = global_max
        self.global_mean = global_mean

    def train(self, mode=True):
        super().train(mode)
        self.oc.eval()
        return self

    def forward(self, batch, epoch):
        image, label = batch["image"], batch["label"]
        target = batch["target"] if "target" in batch else sample_target(label)         # (B,)
        remaining, has_target = without(label, target)                                  # (B, C), (B,)

        cam, logits = self.cgnet(image)                                                 # (B, C, h, w), (B, C)
        erased, _ = erase(image, cam, target, self.mask_norm, batch.get("peak", self.global_max))   # (B, 3, H, W)
        _, logits_erased = self.oc(erased)                                              # what is left to see? (B, C)

        loss_cls = F.binary_cross_entropy_with_logits(logits, label)
        per_image = F.binary_cross_entropy_with_logits(logits_erased, remaining, reduction="none").mean(1)      # (B,)
        lam = self.cc_init + self.cc_slope * epoch
        images, others = batch["counts"] if "counts" in batch else self._mean_counts(label, target)     # (), ()
        loss_cse = lam * torch.where(has_target, per_image, 0).sum() / images.clamp(min=1e-6)

        probability = torch.sigmoid(logits_erased.detach())                             # (B, C)
        rest = (remaining > 0).float() * has_target[:, None]
        gone = F.one_hot(target.clamp(min=0), label.shape[1]) * has_target[:, None]      # one-hot rows, or zeros
        return {
            "loss": loss_cls + loss_cse,
            "loss_cls": loss_cls,
            "loss_cse": loss_cse,
            "p_target_erased": (probability * gone).sum() / images,
            "p_rest_erased": (probability * rest).sum() / others,
        }

    @torch.no_grad()
    def look(self, batch):
        """Show what the erasing does to a batch that has "target".

        Returns {"erased" (B, 3, H, W), "mask" (B, 1, H, W), "before" (B, C), "after" (B, C)}: the last two are the OC's
        probabilities for the picture and for what is left of it.
        """
        training = self.cgnet.training
        self.cgnet.eval()
        cam, _ = self.cgnet(batch["image"])
        self.cgnet.train(training)
        erased, mask = erase(batch["image"], cam, batch["target"], self.mask_norm)
        before, after = (torch.sigmoid(self.oc(x)[1]) for x in (batch["image"], erased))
        return {"erased": erased, "mask": mask, "before": before, "after": after}

    @torch.no_grad()
    def rehearse(self, parts, draw_from):
        """Tell the parts of a batch what they need of each other; forward over each, averaged, is then that of all.

        parts      batches with "target"; each gets "counts", and "peak" instead of global_max
        draw_from  (i) -> None sets dropout's draws to those of part i
        Returns the order in which to take them. All but the last take the peak of all masks as a given number, and
        leave there what its gradient would be; the last one holds it, and hands that on.
        """
        counts = self._mean_counts(*(torch.cat([part[name] for part in parts]) for name in ("label", "target")))
        for part in parts:
            part["counts"] = counts / len(parts)
        if self.mask_norm == "image":
            return list(range(len(parts)))
        peaks = []
        for i, part in enumerate(parts):
            draw_from(i)
            cam, _ = self.cgnet(part["image"])
            peaks.append(activation(cam, part["target"], part["image"].shape[2:]).max())
        peaks = torch.stack(peaks)                                                      # (parts,)
        holder = int(peaks.argmax())
        peak = self.global_max(peaks.max()) if self.global_max else peaks.max()
        peak.requires_grad_()

        def own_peak(own):
            own = self.global_max(own) if self.global_max else own
            own.register_hook(lambda gradient: gradient + peak.grad)
            return own

        for i, part in enumerate(parts):
            part["peak"] = own_peak if i == holder else lambda own: peak
        return [i for i in range(len(parts)) if i != holder] + [holder]

    def _mean_counts(self, label, target):
        """Count the images that have a target, and the other labels on them: (2,).

        Of several processes the means: each divides by them, and the mean over the processes is exact.
        """
        remaining, has_target = without(label, target)
        counts = torch.stack([has_target.sum(), ((remaining > 0) & has_target[:, None]).sum()]).float()
        return self.global_mean(counts) if self.global_mean else counts


def sample_target(label, generator=None):
    """Draw one present class an image, uniformly: label (B, C) -> (B,) int64 columns 0..C-1, -1 where there is none."""
    draw = torch.rand(label.shape, generator=generator, device=generator.device if generator else label.device)
    draw = draw.to(label.device).masked_fill(label <= 0, -1)
    best, target = draw.max(1)
    return target.masked_fill(best < 0, -1)


def without(label, target):
    """Remove the target from the label set: (B, C), (B,) -> remaining (B, C), has_target (B,) bool."""
    has_target = target >= 0
    row = F.one_hot(target.clamp(min=0), label.shape[1]).to(label) * has_target[:, None]
    return label * (1 - row), has_target


def erase(image, cam, target, mask_norm="batch", global_max=None):
    """Take the target class out of each image, softly, with its own CAM.

    image (B, 3, H, W) normalised; cam (B, C, h, w) without ReLU; target (B,), -1 leaves the image as it is
    mask_norm   "batch": the masks are divided by their maximum over the batch, as the authors' code does (the result
                depends on which images share a batch); "image": each by its own, as the paper's text says
    Returns erased (B, 3, H, W) = image * (1 - mask) and mask (B, 1, H, W) in [0, 1]; gradients pass through both.
    """
    if mask_norm not in ("batch", "image"):
        raise ValueError(f"mask_norm must be batch or image, not {mask_norm!r}")
    mask = activation(cam, target, image.shape[2:])
    if mask_norm == "batch":
        peak = mask.max()
        if global_max:
            peak = global_max(peak)
    else:
        peak = mask.amax((1, 2, 3), keepdim=True)                                       # (B, 1, 1, 1)
    mask = mask / (peak + 1e-5)
    return image * (1 - mask), mask


def activation(cam, target, size):
    """Take the target's CAM, upsampled, ReLU: (B, C, h, w), (B,) -> (B, 1, H, W); 0 where the target is -1."""
    rows = torch.arange(len(target), device=target.device)
    mask = cam[rows, target.clamp(min=0)][:, None].float()                              # (B, 1, h, w)
    mask = F.interpolate(mask, size, mode="bilinear", align_corners=False).relu()       # (B, 1, H, W)
    return torch.where((target >= 0)[:, None, None, None], mask, 0)
