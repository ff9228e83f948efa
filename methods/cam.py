"""Class activation maps of an image, from eight views of it."""
import torch
import torch.nn.functional as F


@torch.no_grad()
def multi_scale_cam(net, views, size, label):
    """Sum the CAMs of an image's views and scale each class to [0, 1].

    net    image -> (cam, logits, ...) in eval mode: CAMNet, GPPNet
    views  [(2, 3, h_s, w_s)]: the image and its mirror image at each scale
    size   (H, W) of the image;  label  (C,) image-level labels
    Returns classes (K,) int64, ids 1..C, and scores (K, H, W) float32; K is the number of labelled classes.
    Source: OC-CSE, infer_msf. ReLU follows the upsampling (AffinityNet: before it).
    """
    device = next(net.parameters()).device
    present = label.nonzero()[:, 0]                                         # (K,)
    columns = present.to(device, non_blocking=True)     # before the views: a copy between them waits for the GPU
    total = torch.zeros(len(present), *size, device=device)                 # (K, H, W)
    weight = label[present].to(device, torch.float32, non_blocking=True)[:, None, None]
    if len(present):
        for view in views:
            cam = net(to_device(view, device))[0]                           # (2, C, h, w)
            cam = cam[:, columns].float()
            cam = F.interpolate(cam, size, mode="bilinear", align_corners=False).relu() * weight
            total += cam[0] + cam[1].flip(-1)
        total /= total.amax((1, 2), keepdim=True) + 1e-5
    return present.cpu() + 1, total


def image_cams(net, images, labels="given", locate=multi_scale_cam):
    """Yield (ID, classes (K,) int64, scores (K, H, W) float32), numpy, of each image.

    net       image -> (cam, logits, ...) in eval mode
    images  (ID, views, (H, W), label (C,)): data.loader.view_loader
    labels    "predicted" takes the classes to which net gives a probability of .5, or the likeliest, not the label
    locate    net, views, (H, W), label -> classes, scores: another way to find them than multi_scale_cam
    """
    device = next(net.parameters()).device
    for image_id, views, size, label in images:
        if labels == "predicted":
            nearest = min(views, key=lambda view: abs(view.shape[-1] - size[1]))        # scale 1, if it is among them
            label = predict_label(net, to_device(nearest, device))
        classes, scores = locate(net, views, size, label)
        yield image_id, classes.numpy(), scores.cpu().numpy()


@torch.no_grad()
def predict_label(net, view):
    """Name the classes of probability .5 and more, or else the likeliest: an image and its mirror image -> (C,)."""
    probability = torch.sigmoid(net(view)[1]).mean(0).cpu()
    return ((probability >= 0.5) | (probability == probability.max())).float()


def background(scores, alpha):
    """Return the background's score (1 - max over classes)^alpha: scores (K, H, W) in [0, 1] -> (1, H, W)."""
    if not len(scores):
        return torch.ones(1, *scores.shape[1:], dtype=scores.dtype, device=scores.device)
    return (1 - scores.amax(0, keepdim=True)) ** alpha


def to_device(image, device):
    """Move images (B, 3, H, W); on a GPU in channels_last, which its convolutions want."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return image.to(device, non_blocking=True, memory_format=layout)
