"""Random walk: golden set 10, a slow twin with the dense matrix, and what it may cost."""
import resource
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from methods.affinity import offsets, pair_affinity, pairs_of
from methods.random_walk import random_walk, start_scores, transition
from tools import crf


def affinities(h, w, radius=5, seed=0):
    """Give affinities (P, N) of smooth features."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 8, h // 6 + 2, w // 6 + 2, generator=generator)
    features = F.interpolate(features, (h, w), mode="bilinear") + 0.1 * torch.randn(1, 8, h, w, generator=generator)
    return pair_affinity(0.4 * features, radius)[0]


def random_scores(rows, h, w):
    return torch.rand(rows, h, w, generator=torch.Generator().manual_seed(1))


def dense_transition(affinity, h, w, radius=5, beta=8):
    """Fill T (columns sum to 1) pair by pair."""
    matrix = torch.eye(h * w, dtype=torch.float64)
    for p, (y, x) in enumerate(offsets(radius)):
        n = 0
        for i in range(h - radius + 1):
            for j in range(radius - 1, w - radius + 1):
                a, b = i * w + j, (i + y) * w + j + x
                matrix[a, b] = matrix[b, a] = affinity[p, n] ** beta
                n += 1
    return matrix / matrix.sum(0, keepdim=True)


def dense_walk(scores, matrix, logt=8):
    for _ in range(logt):
        matrix = matrix @ matrix
    return (scores.flatten(1).to(matrix) @ matrix).view_as(scores)


# ---- golden set 10 ----

@pytest.fixture
def authors(golden):
    """Give what their walk began with, the affinities as (P, N) too, and what it gave."""
    stored = dict(np.load(golden("set10_random_walk_psa.npz")))
    here, there = pairs_of(torch.arange(12 * 16).view(12, 16), 5)
    stored["affinity"] = torch.from_numpy(stored["aff_dense"][here, torch.stack(there)]).flatten(1)
    stored["cams"] = torch.from_numpy(stored["cams"])
    return stored


def upsample(walked):
    return F.interpolate(walked[None], scale_factor=8, mode="bilinear", align_corners=False)[0]


def test_the_walk_is_psas(authors):
    scores = start_scores(authors["cams"], alpha=16)
    np.testing.assert_allclose(scores, authors["cam_pooled"], atol=1e-6)
    walked = random_walk(scores, authors["affinity"])
    np.testing.assert_allclose(walked, authors["cam_rw_lowres"], atol=1e-5)
    up = upsample(walked)
    np.testing.assert_allclose(up, authors["cam_rw_up"], atol=1e-5)
    label = np.array([0, *authors["keys"] + 1])[up.argmax(0)[:90, :125]]
    assert (label == authors["label_map"]).mean() >= 0.999


def test_many_steps_are_the_squared_matrix(authors):
    cells = torch.eye(12 * 16).view(-1, 12, 16)
    walked = random_walk(cells, authors["affinity"]).flatten(1)
    np.testing.assert_allclose(walked, authors["trans_mat_final"], atol=2e-5)       # theirs is rounded at each squaring
    matrix = torch.from_numpy(authors["aff_dense"]).double() ** 8
    np.testing.assert_allclose(walked, dense_walk(cells, matrix / matrix.sum(0)).flatten(1), atol=1e-6)


@pytest.mark.parametrize("alpha", [16, 19])
def test_the_walk_is_aefts(golden, authors, alpha):
    """Fewer steps, then one CRF iteration on the padded image with a row for every class."""
    stored = np.load(golden("set10_random_walk_aeft.npz"))
    up = upsample(random_walk(start_scores(authors["cams"], alpha), authors["affinity"], logt=6)).numpy()
    np.testing.assert_allclose(up, stored[f"alpha{alpha}_soft_up"], atol=1e-5)
    pytest.importorskip("pydensecrf")
    classes = np.array([0, *authors["keys"] + 1])
    rows = np.zeros((21, *up.shape[1:]), np.float32)
    rows[classes] = up
    refined = crf.dense_crf(stored["img8_padded"], rows, iterations=1)
    np.testing.assert_allclose(refined[classes], stored[f"alpha{alpha}_crf"], atol=1e-3)
    assert (refined.argmax(0)[:90, :125] == stored[f"alpha{alpha}_label_map"]).mean() >= 0.995


# ---- properties ----

@pytest.mark.parametrize(("h", "w", "radius", "beta", "logt"), [
    (9, 14, 5, 8, 8), (5, 9, 5, 8, 6), (11, 6, 3, 2, 3), (8, 10, 3, 8, 0), (4, 3, 2, 8, 8)])
def test_equals_the_dense_matrix(h, w, radius, beta, logt):
    affinity, scores = affinities(h, w, radius), random_scores(3, h, w)
    matrix = dense_transition(affinity, h, w, radius, beta)
    step = transition(affinity.double(), h, w, radius, beta)
    torch.testing.assert_close(step.to_dense().T, matrix, rtol=0, atol=1e-6)
    walked = random_walk(scores, affinity, radius, beta, logt)
    assert walked.is_contiguous() and walked.dtype == torch.float32
    torch.testing.assert_close(walked, dense_walk(scores, matrix, logt).float(), rtol=0, atol=1e-6)


def test_each_cell_takes_a_mean_of_its_neighbours():
    matrix = transition(affinities(13, 17), 13, 17)
    torch.testing.assert_close(matrix.to_dense().sum(1), torch.ones(13 * 17))
    per_cell = matrix.crow_indices().diff()
    assert per_cell.max() == 69 and per_cell.min() < 20
    columns = [matrix.col_indices()[a:b] for a, b in matrix.crow_indices().unfold(0, 2, 1).tolist()]
    assert all((column.diff() > 0).all() for column in columns)


def test_a_constant_stays_and_nothing_leaves_its_range():
    affinity, scores = affinities(12, 20), random_scores(4, 12, 20)
    scores[0] = 0.7
    walked = random_walk(scores, affinity)
    torch.testing.assert_close(walked[0], scores[0], rtol=0, atol=1e-6)
    assert walked.min() >= scores.min() and walked.max() <= scores.max()
    assert walked[1:].std() < scores[1:].std() / 2


def test_rows_walk_alone_and_sums_stay():
    affinity, scores = affinities(12, 20), random_scores(4, 12, 20)
    together = random_walk(scores, affinity)
    for row, walked in zip(scores, together):
        torch.testing.assert_close(random_walk(row[None], affinity)[0], walked)
    shares = scores / scores.sum(0)
    torch.testing.assert_close(random_walk(shares, affinity).sum(0), torch.ones(12, 20), rtol=0, atol=1e-6)


def test_nothing_passes_a_wall():
    features = torch.zeros(1, 2, 12, 20)
    features[..., 10:] = 40                                         # exp(-40)^8 is 0 in float32
    scores = torch.zeros(1, 12, 20)
    scores[..., :10] = 1
    torch.testing.assert_close(random_walk(scores, pair_affinity(features)[0]), scores, rtol=0, atol=1e-6)


def test_not_a_number_is_not_lost():
    affinity = affinities(12, 20)
    affinity[3, 5] = float("nan")
    assert random_walk(random_scores(2, 12, 20), affinity).isnan().any()


@pytest.mark.parametrize("radius", [0, 1])
def test_without_pairs_all_stay(radius):
    scores = random_scores(3, 3, 4)
    assert torch.equal(random_walk(scores, pair_affinity(torch.rand(1, 5, 3, 4), radius)[0], radius), scores)


def test_autocast_does_not_touch_it():
    affinity, scores = affinities(12, 20), random_scores(4, 12, 20)
    with torch.autocast("cpu", torch.bfloat16):
        walked = random_walk(scores, affinity)
    assert torch.equal(walked, random_walk(scores, affinity))


def test_a_person_is_not_told_of_torchs_plans(recwarn):
    torch.set_warn_always(True)
    try:
        random_walk(random_scores(2, 12, 20), affinities(12, 20), logt=1)
    finally:
        torch.set_warn_always(False)
    assert not recwarn.list


def test_affinities_of_another_map():
    for affinity in (affinities(12, 20), affinities(20, 12, 3), affinities(21, 12)[0]):
        with pytest.raises(ValueError, match=r"20x12 cells at radius 5: \(34, 64\)"):
            random_walk(random_scores(2, 20, 12), affinity)


def test_pooled_scores_of_a_padded_picture():
    cams = torch.rand(2, 13, 16, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(3, 16, 16)
    padded[0, :13], padded[1:, :13] = (1 - cams.amax(0)) ** 4, cams
    expected = padded.view(3, 2, 8, 2, 8).mean((2, 4))
    torch.testing.assert_close(start_scores(cams, 4), expected)
    assert start_scores(torch.zeros(0, 8, 16), 16).tolist() == [[[1, 1]]]       # of no class: all background


# ---- what it costs ----

@pytest.mark.slow
def test_exact_and_much_faster_than_the_dense_matrix(one_thread):
    """An image of 285x380 with three classes: of more, or larger, the dense matrix takes long to square."""
    h, w = 36, 48
    affinity, scores = affinities(h, w), random_scores(4, h, w)
    matrix = transition(affinity, h, w).to_dense().T.contiguous()
    results, seconds = [], []
    for walk, argument in ((random_walk, affinity), (dense_walk, matrix), (random_walk, affinity)):
        start = time.process_time()                 # of this process alone: others on the machine slow a clock's down
        results.append(walk(scores, argument))
        seconds.append(time.process_time() - start)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * scores.max()
    assert torch.equal(results[0], results[2])
    assert seconds[1] > 8 * min(seconds[0], seconds[2]), seconds


@pytest.mark.slow
def test_a_large_picture_needs_little_memory():
    """Of 2048x2048 pixels, under a limit of address space 3 GB above what is taken now; the dense matrix has 17 GB."""
    affinity, scores = affinities(256, 256), random_scores(4, 256, 256)
    random_walk(scores[:, :12, :20].contiguous(), affinities(12, 20), logt=1)       # threads take address space too
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 3 * 10**9, before[1]))
    try:
        walked = random_walk(scores, affinity, logt=4)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert walked.isfinite().all()
