"""Which of an image's present classes is erased."""
import torch


def choose(sampling, batch, cam, epoch):
    """Choose the class to erase in each image: (B,) int64 columns 0..C-1, -1 where no class is present.

    sampling  "uniform": the batch's "target", or drawn here; "in_turn": each epoch the next of the present classes, the
              first by the image's "index"; "largest": the class whose CAM (B, C, h, w) has the largest sum
    """
    label = batch["label"]
    if sampling == "largest":
        return _best(cam.detach().float().relu().sum((2, 3)), label)
    if sampling == "in_turn":
        return in_turn(label, batch["index"].to(label.device) + epoch)
    return batch["target"] if "target" in batch else sample_target(label)


def sample_target(label, generator=None):
    """Draw one present class an image, uniformly: label (B, C) -> (B,) int64 columns 0..C-1, -1 where there is none."""
    draw = torch.rand(label.shape, generator=generator, device=generator.device if generator else label.device)
    return _best(draw.to(label.device), label)


def in_turn(label, turn):
    """Take present class number turn (B,), modulo their number: (B, C), (B,) -> (B,), -1 where there is none."""
    present = label > 0
    number = turn % present.sum(1).clamp(min=1)                             # (B,)
    chosen = (present.cumsum(1) > number[:, None]).to(torch.uint8).argmax(1)
    return chosen.masked_fill(~present.any(1), -1)


def _best(score, label):
    """Take the present class with the highest score: (B, C) >= 0, (B, C) -> (B,), -1 where there is none."""
    best, target = score.masked_fill(label <= 0, -1).max(1)
    return target.masked_fill(best < 0, -1)
