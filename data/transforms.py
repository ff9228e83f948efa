"""Images as the networks see them: normalised, at several scales, and randomly changed for training.

Everything random takes a numpy Generator, so the caller decides what a sample's randomness depends on. An image is a
uint8 array, or Pillow's image in RGB: then it stays one until the colours are changed, which saves four copies.
"""
import numpy as np
import torch
from PIL import Image, ImageEnhance

MEAN = (0.485, 0.456, 0.406)        # ImageNet, RGB in 0..1
STD = (0.229, 0.224, 0.225)
NORMALIZED = ((np.arange(256) / 255 - np.array(MEAN)[:, None]) / np.array(STD)[:, None]).astype(np.float32)  # (3, 256)


def augment(image, rng, resize=(256, 448), crop_size=384, jitter_amounts=(0.3, 0.3, 0.3, 0.1), jitter_probability=1):
    """Give a random training view of `image`, uint8 (H, W, 3) or Pillow's: float32 tensor (3, crop_size, crop_size),
    normalised.

    In this order: resize (long side drawn from the integers of `resize`, both ends included), mirror one time in two,
    jitter the colours (of a share of the images), normalise, crop. What lies outside the image is 0, the mean colour.
    """
    image = resize_long(image, rng.integers(resize[0], resize[1] + 1))
    if rng.random() < 0.5:
        image = mirror(image)
    if jitter_probability >= 1 or rng.random() < jitter_probability:
        image = jitter(image, rng, *jitter_amounts)
    image = np.asarray(image)
    offsets = draw_crop(*image.shape[:2], crop_size, rng)
    return torch.from_numpy(normalized_crop(image, crop_size, offsets))


def augment_labelled(image, label_map, rng, scale=(0.5, 1.5), crop_size=448, jitter_amounts=(0.3, 0.3, 0.3, 0.1)):
    """Give a random training view of `image`, uint8 (H, W, 3) or Pillow's, and of its label map (H, W): tensors
    (3, crop_size, crop_size) float32, normalised, and (crop_size, crop_size) uint8.

    In this order: both scaled by a factor drawn from `scale` (labels to the nearest), both mirrored one time in two,
    colours jittered, normalised, both cropped. What lies outside the image is 0, the mean colour; its label is 255.
    """
    factor = rng.uniform(*scale)
    height, width = (max(1, round(extent * factor)) for extent in label_map.shape)
    image, label_map = _resize(image, height, width), resize_label_map(label_map, height, width)
    if rng.random() < 0.5:
        image, label_map = mirror(image), mirror(label_map)
    image = np.asarray(jitter(image, rng, *jitter_amounts))
    offsets = draw_crop(height, width, crop_size, rng)
    return (torch.from_numpy(normalized_crop(image, crop_size, offsets)),
            torch.from_numpy(crop(label_map, crop_size, offsets, fill=255)))


def augment_mapped(image, maps, rng, crop_size=448, jitter_amounts=(0.3, 0.3, 0.3, 0.1)):
    """Give a random training view of `image`, uint8 (H, W, 3) or Pillow's, and of maps that belong to it, each
    (R, H, W) float32: (3, crop_size, crop_size) float32, normalised, and [(R, crop_size, crop_size)].

    In this order: colours jittered, all cropped, all mirrored one time in two, normalised. What lies outside the image
    is 0: in the image black, since the crop comes before the normalisation.
    """
    image = np.asarray(jitter(image, rng, *jitter_amounts))
    offsets = draw_crop(*image.shape[:2], crop_size, rng)
    image = crop(image, crop_size, offsets)
    maps = [crop(scores.transpose(1, 2, 0), crop_size, offsets) for scores in maps]        # (S, S, R) each
    if rng.random() < 0.5:
        image, maps = mirror(image), [scores[:, ::-1] for scores in maps]
    planes = np.empty((3, crop_size, crop_size), np.float32)
    _fill_normalized(planes, image)
    return torch.from_numpy(planes), [torch.from_numpy(np.ascontiguousarray(m.transpose(2, 0, 1))) for m in maps]


def views(image, scales=(0.5, 1, 1.5, 2)):
    """Give [(2, 3, h_s, w_s) float32], one a scale: `image` uint8 (H, W, 3) and its mirror image, normalised."""
    height, width = image.shape[:2]
    result = []
    for scale in scales:
        scaled = _resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
        pair = torch.empty(2, 3, *scaled.shape[:2])
        _fill_normalized(pair[0].numpy(), scaled)
        pair[1] = pair[0].flip(-1)
        result.append(pair)
    return result


def normalize(image):
    """Turn `image` uint8 (H, W, 3) into float32 (H, W, 3): 0..1, minus ImageNet's mean, over its deviation."""
    result = np.empty(image.shape, dtype=np.float32)
    _fill_normalized(result.transpose(2, 0, 1), image)
    return result


def _fill_normalized(planes, image):
    """Write `image` uint8 (H, W, 3), normalised, into `planes` float32 (3, H, W), by a table of the 3 x 256 values."""
    if image.dtype != np.uint8:
        raise ValueError(f"an image to normalise holds uint8 values 0..255, not {image.dtype}")
    for c in range(3):
        np.take(NORMALIZED[c], image[..., c], out=planes[c], mode="clip")   # none is out of range: saves a copy


def denormalize(image):
    """Turn a normalised tensor (3, H, W) back into an image: uint8 (H, W, 3)."""
    planes = image.detach().float().cpu().numpy().transpose(1, 2, 0) * np.float32(STD) + np.float32(MEAN)
    return np.rint(255 * planes).clip(0, 255).astype(np.uint8)


def resize_long(image, long):
    """Resize an image so that its longer side is `long`, the other in proportion and at least 1."""
    (height, width), long = extent_of(image), int(long)
    longest = max(height, width)
    return _resize(image, max(1, round(height * long / longest)), max(1, round(width * long / longest)))


def shrink(image, max_side):
    """Resize an image to a longer side of `max_side` if it has a longer one; 0 or None: never."""
    return resize_long(image, max_side) if 0 < (max_side or 0) < max(extent_of(image)) else image


def extent_of(image):
    """Return (H, W) of an array (H, W, 3) or of Pillow's image."""
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def _resize(image, height, width):
    """Resize by Pillow's bicubic: unlike torch's and OpenCV's, it antialiases when it shrinks."""
    return _by_pillow(image, lambda picture: picture.resize((width, height), Image.Resampling.BICUBIC))


def _by_pillow(image, change):
    """Change Pillow's image, or an array as one; what is returned is of the same kind."""
    return change(image) if isinstance(image, Image.Image) else np.array(change(Image.fromarray(image)))


def resize_scores(scores, height, width):
    """Resize maps of scores (R, H, W) bilinearly to (R, height, width) float32; where they shrink, to means."""
    resized = np.empty((len(scores), height, width), np.float32)
    for row, score in zip(resized, scores):
        row[:] = Image.fromarray(np.asarray(score, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return resized


def resize_label_map(label_map, height, width):
    """Resize a label map uint8 (H, W): each pixel gets the class of the nearest, none is mixed."""
    return np.array(Image.fromarray(label_map).resize((width, height), Image.Resampling.NEAREST))


def resized_to(label_map, size):
    """Return a label map of a size (H, W): itself if it has that size."""
    return label_map if label_map.shape == tuple(size) else resize_label_map(label_map, *size)


def mirror(image):
    """Swap left and right of an image or a uint8 (H, W) array (half the time of image[:, ::-1].copy())."""
    return _by_pillow(image, lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def draw_crop(height, width, size, rng):
    """Draw where a square of `size` pixels lies on an image: offsets (cont_left, img_left, cont_top, img_top).

    Along an axis where the image is the longer, the square starts at img_*; else the image starts at cont_* in it.
    """
    offsets = []
    for extent in (width, height):
        start = int(rng.integers(abs(extent - size) + 1))
        offsets += [0, start] if extent > size else [start, 0]
    return tuple(offsets)


def crop(image, size, offsets, fill=0):
    """Cut a square of `size` pixels at `offsets` (see draw_crop) from `image` (H, W) or (H, W, c), `fill` outside."""
    inside, window = _overlap(image, size, offsets)
    result = np.full((size, size, *image.shape[2:]), fill, dtype=image.dtype)
    result[inside] = image[window]
    return result


def normalized_crop(image, size, offsets):
    """Give crop(normalize(image), size, offsets) as (3, size, size), normalising only the pixels that are kept."""
    inside, window = _overlap(image, size, offsets)
    result = np.zeros((3, size, size), dtype=np.float32)
    _fill_normalized(result[:, *inside], image[window])
    return result


def _overlap(image, size, offsets):
    """Give the two places where image and square meet, as slices (rows, columns): in the square, in the image."""
    cont_left, img_left, cont_top, img_top = offsets
    height, width = min(size, image.shape[0]), min(size, image.shape[1])
    inside = slice(cont_top, cont_top + height), slice(cont_left, cont_left + width)
    window = slice(img_top, img_top + height), slice(img_left, img_left + width)
    return inside, window


def jitter(image, rng, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1):
    """Change the colours of an image as torchvision's ColorJitter does, to the bit, without torchvision.

    Each factor is uniform in [1 - amount, 1 + amount], the turn of the hue in [-hue, hue] of the circle; the four steps
    come in random order. A step with amount 0 is left out.
    """
    steps = (
        (brightness, lambda picture, factor: ImageEnhance.Brightness(picture).enhance(1 + factor)),
        (contrast, lambda picture, factor: ImageEnhance.Contrast(picture).enhance(1 + factor)),
        (saturation, lambda picture, factor: ImageEnhance.Color(picture).enhance(1 + factor)),
        (hue, turn_hue),
    )
    changes, order = rng.uniform(-1, 1, size=4), rng.permutation(4)

    def changed(picture):
        for i in order:
            amount, change = steps[i]
            if amount:
                picture = change(picture, amount * changes[i])
        return picture

    return _by_pillow(image, changed)


def turn_hue(image, turn):
    """Turn the hue of a Pillow RGB image by `turn` in [-.5, .5] of the circle, in whole 1/255 as torchvision."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + int(turn * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
