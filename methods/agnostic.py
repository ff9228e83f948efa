"""Class-agnostic erasing: the comparison of OC-CSE's paper. Erase all present classes; no class may be left."""
import torch
import torch.nn.functional as F

from methods.classification import of_present
from methods.cse import CSE, erase_by, upsampled


class Agnostic(CSE):
    """The CGNet's objective where erasing knows no classes: classification plus lambda times the erasing loss.

    The mask is the pixel-wise maximum of the present classes' CAMs, and the frozen classifier must find no class in
    what is left of the image. Arguments: those of methods.cse.CSE.

    forward: {"image" (B, 3, H, W), "label" (B, C)}, epoch -> {"loss", "loss_cls", "loss_cse" (lambda included),
    "p_target_erased", "erased"}: the probability that the OC still gives to present classes, and the masks' mean.
    """

    most = None         # a number saves work: see methods.classification.of_present

    def forward(self, batch, epoch):
        image, label = batch["image"], batch["label"]
        cam, logits = self.cgnet(image)                                                 # (B, C, h, w), (B, C)
        erased, mask = erase_all(image, cam, label, self.mask_norm, self.global_max, self.most)
        logits_erased = self.oc(erased)[1]                                              # (B, C)

        present = label > 0                                                             # (B, C)
        counts = torch.stack([present.any(1).sum().float(), present.sum().float()])     # (2,)
        images, classes = self.global_mean(counts) if self.global_mean else counts
        lam = self.cc_init + self.cc_slope * epoch
        loss_cls = F.binary_cross_entropy_with_logits(logits, label)
        per_image = F.softplus(logits_erased).mean(1)           # (B,) cross entropy, if no class is there
        loss_cse = lam * torch.where(present.any(1), per_image, 0).sum() / images.clamp(min=1e-6)
        return {
            "loss": loss_cls + loss_cse,
            "loss_cls": loss_cls,
            "loss_cse": loss_cse,
            "p_target_erased": (torch.sigmoid(logits_erased.detach()) * present).sum() / classes,
            "erased": mask.detach().mean((1, 2, 3)).sum() / images,
        }


def erase_all(image, cam, label, mask_norm="batch", global_max=None, most=None):
    """Erase all present classes from each image, softly, with the pixel-wise maximum of their CAMs.

    image (B, 3, H, W) normalised; cam (B, C, h, w) without ReLU; label (B, C); most as of
    methods.classification.of_present; otherwise as methods.cse.erase.
    """
    cam, label = of_present(cam, label, most)                                           # (B, N, h, w), (B, N)
    maps = upsampled(cam, image) * (label > 0)[:, :, None, None]                        # (B, N, H, W)
    return erase_by(image, maps.amax(1, keepdim=True), mask_norm, global_max)
