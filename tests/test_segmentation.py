"""What DeepLab learns from and how it is asked: the loss, the averaged views, images and labels changed alike."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from data.dataset import SegSet
from data.images import image_size, read_image, voc_palette
from data.layout import VOCLayout
from data.loader import view_loader
from data.photos import Photos
from data.transforms import augment_labelled, normalize, views
from methods.segmentation import Segmentation, multi_scale_scores
from tests.conftest import assert_close
from tools.crf import BILATERAL, DEEPLAB_BILATERAL, Job, dense_crf, refine_all
from tools.recompute import InParts
from tools.visualize import label_overlay
from train_seg import check_labels

CLASSES = 3


class Linear(nn.Module):
    """Classify each pixel by its colour alone, so that what happens to one pixel can be followed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, CLASSES + 1, 1)

    def forward(self, image):
        return self.conv(image)


def batch_of(images=4, seed=0):
    """Images of which the second has hardly a label and the third none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES + 1, (images, 6, 5), generator=generator, dtype=torch.uint8)
    labels[0, :3] = 255
    labels[1, 1:] = 255
    labels[2] = 255
    return {"image": torch.randn(images, 3, 6, 5, generator=generator), "label_map": labels}


# ---- the objective ----

def test_the_loss_is_the_mean_over_the_labelled_pixels():
    net, batch = Linear(), batch_of()
    terms = Segmentation(net, 255)(batch, 0)
    logits, total, right, objects = net(batch["image"]), 0, [], []
    for i, y, x in np.argwhere(batch["label_map"].numpy() != 255):
        label = int(batch["label_map"][i, y, x])
        total -= torch.log_softmax(logits[i, :, y, x], 0)[label]
        right.append(int(logits[i, :, y, x].argmax()) == label)
        objects.append(label > 0)
    torch.testing.assert_close(terms["loss"], total / len(right))
    assert float(terms["accuracy"]) == pytest.approx(np.mean(right))
    assert float(terms["accuracy_objects"]) == pytest.approx(np.mean(np.array(right)[objects]))


def test_a_network_that_calls_everything_background_shows():
    net = Linear()
    with torch.no_grad():
        net.conv.bias[0] = 100.
    batch = batch_of()
    terms = Segmentation(net, 255)(batch, 0)
    labels = batch["label_map"]
    assert terms["accuracy_objects"] == 0 and terms["accuracy"] == (labels == 0).sum() / (labels != 255).sum()
    batch["label_map"].fill_(0)
    assert torch.isnan(Segmentation(net, 255)(batch, 0)["accuracy_objects"])


def test_a_batch_without_a_label_teaches_nothing():
    net, batch = Linear(), batch_of()
    batch["label_map"].fill_(255)
    terms = Segmentation(net, 255)(batch, 0)
    terms["loss"].backward()
    assert terms["loss"] == 0 and torch.isnan(terms["accuracy"])
    assert all(p.grad.abs().sum() == 0 for p in net.parameters())


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_make_the_same_step(parts):
    """--accumulate: parts with many labels, few and none weigh as much as their pixels."""
    found = []
    for count in (1, parts):
        net = Linear()
        terms = Segmentation(InParts(net, count), 255)(batch_of(), 0)
        terms["loss"].backward()
        found.append((*terms.values(), net.conv.weight.grad))
    for whole, split in zip(*found):
        assert_close(split, whole)


def test_processes_make_the_same_step():
    """Each divides by the mean count, and the mean of their gradients is that of the whole batch."""
    batch, whole = batch_of(), Linear()
    Segmentation(whole, 255)(batch, 0)["loss"].backward()
    halves = [{k: v[rank::2] for k, v in batch.items()} for rank in range(2)]
    counts = [torch.stack([(x != 255).sum(), ((x != 255) & (x > 0)).sum()]).float() for x in
              (half["label_map"] for half in halves)]
    assert counts[0][0] != counts[1][0]
    gradients = []
    for half in halves:
        net = Linear()
        Segmentation(net, 255, lambda tensor: sum(counts) / 2)(half, 0)["loss"].backward()
        gradients.append(net.conv.weight.grad)
    assert_close(sum(gradients) / 2, whole.conv.weight.grad)


# ---- scores of an image ----

def test_scores_are_the_mean_of_all_views():
    net, image = Linear(), np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    scores = multi_scale_scores(net, views(image, (0.5, 1, 1.5)), (20, 31))
    expected = []
    for scale in (0.5, 1, 1.5):
        size = round(31 * scale), round(20 * scale)
        x = torch.from_numpy(normalize(np.array(Image.fromarray(image).resize(size, Image.BICUBIC))))
        for flip in (False, True):
            seen = x.permute(2, 0, 1)[None]
            logits = net(seen.flip(-1) if flip else seen)
            logits = F.interpolate(logits, (20, 31), mode="bilinear", align_corners=False)
            expected.append((logits.flip(-1) if flip else logits).softmax(1)[0])
    torch.testing.assert_close(scores, torch.stack(expected).mean(0))
    torch.testing.assert_close(scores.sum(0), torch.ones(20, 31))
    assert not scores.requires_grad


def test_the_mirror_image_is_turned_back():
    """A network that looks at the place alone sees the same place in both: its scores become symmetric."""
    class Place(Linear):
        def forward(self, image):
            logits = torch.zeros(len(image), CLASSES + 1, *image.shape[2:])
            logits[:, 1, :, :5] = 100
            return logits

    scores = multi_scale_scores(Place(), views(np.zeros((8, 20, 3), np.uint8), (1,)), (8, 20))
    torch.testing.assert_close(scores[1, 0], torch.tensor([.625] * 5 + [.25] * 10 + [.625] * 5))


# ---- images and labels together ----

def coloured(height=40, width=60):
    """An image whose colour tells the label: in blocks of 10 pixels."""
    labels = np.random.default_rng(1).integers(0, 4, (height // 10, width // 10), dtype=np.uint8)
    labels = labels.repeat(10, 0).repeat(10, 1)
    return np.stack([labels * 60, labels * 20, 255 - labels * 60], -1).astype(np.uint8), labels


@pytest.mark.parametrize("scale", [(1, 1), (0.5, 0.5), (1.5, 1.5)])
def test_image_and_labels_are_changed_alike(scale):
    """Scaled, mirrored, cropped: the colour still tells the label, but at the blocks' soft borders."""
    image, labels = coloured()
    table = torch.from_numpy(normalize(np.stack([[np.arange(4) * 60, np.arange(4) * 20, 255 - np.arange(4) * 60]], 0)
                                       .transpose(0, 2, 1).astype(np.uint8)))[0]            # (4, 3)
    seen = set()
    for seed in range(12):
        x, y = augment_labelled(image, labels, np.random.default_rng(seed), scale, 32, (0, 0, 0, 0))
        assert x.shape == (3, 32, 32) and y.shape == (32, 32) and y.dtype == torch.uint8
        inside = y != 255
        assert bool(inside.all()) == (scale[0] > 0.5) and (x[:, ~inside] == 0).all()
        distance = (x.permute(1, 2, 0)[:, :, None] - table).square().sum(-1)                # (32, 32, 4)
        assert (distance.argmin(-1)[inside] == y[inside]).float().mean() > 0.85
        seen.add(y.numpy().tobytes())
    assert len(seen) > 8


def test_scaled_labels_are_not_mixed():
    """Between the classes 0 and 200 there is none that neither has."""
    image, labels = coloured()
    _, y = augment_labelled(image, 200 * (labels > 1).astype(np.uint8), np.random.default_rng(0), (0.7, 0.7), 64)
    assert set(np.unique(y)) == {0, 200, 255}


def test_the_scale_is_drawn_from_its_range():
    """The share of a crop that the image covers tells the factor."""
    image, labels = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    sides = []
    for seed in range(200):
        _, y = augment_labelled(image, labels, np.random.default_rng(seed), (0.5, 1.5), 64)
        sides.append(int((y != 255).sum()) ** 0.5)
    assert min(sides) >= 20 and max(sides) <= 60 and min(sides) < 23 and max(sides) > 57


def test_half_of_the_pictures_are_mirrored():
    image, labels = coloured(20, 20)
    mirrored = [np.array_equal(augment_labelled(image, labels, np.random.default_rng(seed), (1, 1), 20)[1],
                               labels[:, ::-1]) for seed in range(100)]
    assert 30 < sum(mirrored) < 70


@pytest.fixture
def layout(tmp_path):
    for folder in ("JPEGImages", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    for name in ("one", "two"):
        image, labels = coloured()
        Image.fromarray(image).save(tmp_path / f"JPEGImages/{name}.png")
        Image.fromarray(labels).save(tmp_path / f"labels/{name}.png")
    return VOCLayout(tmp_path)


def test_labels_have_another_digest_when_a_pixel_changes(layout):
    """A training does not resume on them."""
    ids, folder = ["one", "two"], layout.root / "labels"
    before = check_labels(folder, layout, ids)
    assert check_labels(folder, layout, ids) == before
    labels = np.array(Image.open(folder / "two.png"))
    labels[0, 0] ^= 1
    Image.fromarray(labels).save(folder / "two.png")
    assert check_labels(folder, layout, ids) != before


def test_an_item_depends_on_seed_epoch_and_index_alone(layout):
    def item(seed, key):
        return SegSet(layout, ["one", "two"], layout.root / "labels", seed, augment_labelled)[key]

    first, again = item(1, (0, 0)), item(1, (0, 0))
    assert set(first) == {"image", "label_map", "index"} and first["index"] == 0
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["label_map"], again["label_map"])
    for seed, key in ((2, (0, 0)), (1, (1, 0)), (1, (0, 1))):
        assert not torch.equal(first["label_map"], item(seed, key)["label_map"])


# ---- any images ----

def test_names_of_any_pictures(tmp_path):
    """The name without suffix, but where that would be another image's."""
    for name in ("b.JPG", "a b.png", "ü.webp", "two.jpg", "two.png", "x.png", "x.png.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    pictures = Photos(tmp_path)
    assert pictures.files == {"a b": "a b.png", "b": "b.JPG", "two.jpg": "two.jpg", "two.png": "two.png",
                              "x": "x.png", "x.png.jpg": "x.png.jpg", "ü": "ü.webp"}
    assert pictures.image_path("b") == tmp_path / "b.JPG"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_the_size_in_the_header_is_that_of_the_upright_picture(tmp_path, suffix, turn):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2] == ((20, 30) if turn < 5 else (30, 20))


def test_a_large_picture_is_shrunk_and_a_broken_one_reported(tmp_path):
    Image.new("RGB", (300, 150)).save(tmp_path / "large.png")
    Image.new("RGB", (30, 15)).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pictures = Photos(tmp_path)
    names = list(pictures.files)
    found = {name: (shapes, size) for name, shapes, size, _ in view_loader(
        pictures, names, (1,), labelled=False, max_side=100, tolerant=True)}
    assert found["large"][0][0].shape == (2, 3, 50, 100) and found["large"][1] == [50, 100]
    assert found["small"][1] == [15, 30]
    assert found["broken"][0] is None and "broken.jpg is truncated or not an image" in found["broken"][1]
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        list(view_loader(pictures, names, (1,), labelled=False))


# ---- CRF and overlays ----

def test_the_crf_of_scores_that_have_a_background(tmp_path):
    """In the pool as in this process, with the bilateral of a segmentation network."""
    pytest.importorskip("pydensecrf")
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    scores = np.random.default_rng(1).dirichlet(np.ones(4), (24, 30)).transpose(2, 0, 1).astype(np.float32)
    saved = {}
    for name, bilateral in (("deeplab", DEEPLAB_BILATERAL), ("paper", BILATERAL)):
        job = Job(name, lambda: (image, scores), lambda alpha, s, name=name: saved.update({name: s}))
        assert list(refine_all([job], 1, 3, bilateral)) == [name]
    assert DEEPLAB_BILATERAL == {"sxy": 32, "srgb": 13, "compat": 10}
    np.testing.assert_array_equal(saved["deeplab"], dense_crf(image, scores, 3, DEEPLAB_BILATERAL))
    np.testing.assert_array_equal(saved["paper"], dense_crf(image, scores, 3))
    assert saved["paper"].shape == (4, 24, 30) and np.abs(saved["paper"] - saved["deeplab"]).max() > 1e-3


def test_overlays_show_the_classes_in_their_colours():
    image, labels = np.full((300, 260, 3), 100, np.uint8), np.zeros((300, 260), np.uint8)
    labels[10:20, 10:20], labels[50] = 2, 255
    figure = label_overlay(image, labels, ["background", "a", "b", "c"], voc_palette(), share=0.5)
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(-1, 3)
    assert (figure[30, 30] == 100).all() and figure.shape[1] == 260 and figure.shape[0] > 300
    np.testing.assert_array_equal(figure[15, 15], (50 + 0.5 * colours[2]).astype(np.uint8))
    legend = figure[300:].reshape(-1, 3)
    assert (legend == colours[2]).all(1).any() and not (legend == colours[1]).all(1).any()
    assert label_overlay(image[:1, :1], labels[:1, :1], ["background", "a"], voc_palette()).shape[1] >= 200
