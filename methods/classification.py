"""The ordinary classifier: what is in the image?"""
import torch
import torch.nn.functional as F
from torch import nn


class Classification(nn.Module):
    """Multilabel soft margin loss: binary cross entropy with logits, mean over B x C. Source: AffinityNet, train_cls.

    global_mean  under several processes: the mean of a tensor over all of them

    forward: {"image" (B, 3, H, W), "label" (B, C)} -> {"loss", "p_present", "p_absent"}: the loss, and the mean
    probability given to classes that are and are not there (nan where there is none).
    """

    def __init__(self, oc, global_mean=None):
        super().__init__()
        self.oc = oc
        self.global_mean = global_mean

    def forward(self, batch, epoch):
        _, logits = self.oc(batch["image"])                                 # (B, C)
        loss = F.binary_cross_entropy_with_logits(logits, batch["label"])
        return {"loss": loss, **recognised(logits, batch["label"], self.global_mean)}


@torch.no_grad()
def recognised(logits, label, global_mean=None):
    """Average the probabilities of the classes that are and are not there: (B, C) twice -> {"p_present", "p_absent"}.

    global_mean  as in Classification
    """
    present, probability = (label > 0).float(), torch.sigmoid(logits)       # (B, C) each
    counts = torch.stack([present.sum(), (1 - present).sum()])              # (2,)
    labels, gaps = global_mean(counts) if global_mean else counts
    return {"p_present": (probability * present).sum() / labels,
            "p_absent": (probability * (1 - present)).sum() / gaps}


def of_present(cam, label, most=None):
    """Take each image's maps of its own classes, for work that absent ones have no part in.

    cam (B, C, h, w), label (B, C) -> (B, N, h, w), (B, N). most is N, at least most_classes: an image of more loses
    some. One of fewer gets maps of absent classes besides, whose label is 0. None: all C
    """
    if most is None:
        return cam, label
    label, present = label.topk(most)                                       # (B, N) each
    return cam.gather(1, present[:, :, None, None].expand(-1, -1, *cam.shape[2:])), label


def most_classes(labels):
    """Count the classes of the image that has most of them, at least 1: labels (N, C)."""
    return max(1, int((labels > 0).sum(1).max()))
