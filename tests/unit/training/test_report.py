"""Pictures: files are written and show something, for every shape of input a run can have."""

import math
import re
import threading

import numpy as np
import pytest
from matplotlib.image import imread

from training.report import (
    plot_history,
    plot_latent,
    plot_samples,
    plot_typical,
    typical_rows,
)
from training.report.history import readable_range
from training.report.latent import reduce_to_plane
from training.report.profiles import relative_profiles
from training.report.style import cluster_style


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def ink(path):
    """Share of pixels that are not white, after checking that the file is a PNG of a sensible size."""
    pixels = imread(path)
    assert pixels.ndim == 3
    assert 150 <= pixels.shape[0] <= 5000
    assert 600 <= pixels.shape[1] <= 5000
    return float((pixels[..., :3].min(axis=-1) < 0.99).mean())


def epochs(n, **changes):
    rows = [
        {
            "epoch": i,
            "bound": -700.0 + 50 * math.log1p(i),
            "epsilon_x": 0.5 ** (i // 5),
            "epsilon_z": max(0.5 ** (i // 5), 0.1),
            "learning_rate": 1e-3,
            "seconds": 2.0,
        }
        for i in range(n)
    ]
    return [{**row, **{key: change(i) for key, change in changes.items()}} for i, row in enumerate(rows)]


# Which rows are typical


def test_typical_rows_are_the_best_of_each_cluster(generator):
    clusters = generator.integers(0, 5, 200)
    typicality = generator.normal(size=200)
    picked = typical_rows(clusters, np.ones(200), typicality, 4, 5)
    for index in range(5):
        members = np.flatnonzero(clusters == index)
        expected = sorted(members, key=lambda row: -typicality[row])[:4]
        assert picked[index].tolist() == expected


def test_typical_rows_pads_small_and_empty_clusters():
    clusters = np.array([3, 0, 0, 3, 3])
    picked = typical_rows(clusters, np.ones(5), np.array([1.0, 5.0, 6.0, 3.0, 2.0]), 2, n_clusters=5)
    assert picked.tolist() == [[2, 1], [-1, -1], [-1, -1], [3, 4], [-1, -1]]
    assert typical_rows(clusters, np.ones(5), np.zeros(5), 1).shape == (4, 1)
    assert typical_rows(np.zeros(0, int), np.zeros(0), np.zeros(0), 3, 2).tolist() == [[-1] * 3] * 2


def test_typical_rows_breaks_ties_by_confidence_and_puts_nan_last():
    picked = typical_rows(
        np.zeros(4, int), np.array([0.6, 0.9, 0.99, 0.7]), np.array([1.0, 1.0, np.nan, 2.0]), 4, 1
    )
    assert picked.tolist() == [[3, 1, 0, 2]]


# Tiles


@pytest.mark.parametrize(
    ("n_clusters", "row_shape"),
    [
        (1, (8, 8)),
        (2, (28, 28)),
        (13, (8, 8, 1)),
        (40, (8, 8)),
        (100, (8, 8)),
        (104, (4, 4)),
        (3, (16, 16, 3)),
    ],
)
def test_samples_of_images(tmp_path, generator, n_clusters, row_shape):
    samples = generator.integers(60, 256, (n_clusters, 5, *row_shape), dtype=np.uint8)
    assert ink(plot_samples(tmp_path / "deep" / "samples.png", samples, image=True)) > 0.1


def test_a_tile_shows_its_pixels(tmp_path):
    samples = np.zeros((2, 3, 8, 8, 3), np.uint8)
    samples[0, :, :, :, 0] = 255
    samples[1, :, :, :, 2] = 255
    pixels = imread(plot_samples(tmp_path / "colour.png", samples, image=True))[..., :3]
    red = np.argwhere((pixels == [1, 0, 0]).all(-1))
    blue = np.argwhere((pixels == [0, 0, 1]).all(-1))
    assert len(red) > 1000
    assert len(blue) == pytest.approx(len(red), rel=0.1)
    assert red[:, 0].max() < blue[:, 0].min()


def test_small_ranges_are_stretched_to_black_and_white(tmp_path):
    ramp = np.broadcast_to(np.arange(17)[None, :], (17, 17))
    for name, tiles in (("bytes", ramp.astype(np.uint8)), ("floats", ramp / 16 - 3)):
        pixels = imread(plot_samples(tmp_path / f"{name}.png", np.tile(tiles, (2, 6, 1, 1)), image=True))
        dark = (pixels[..., :3].max(axis=-1) < 0.03).mean()
        assert 0.005 < dark < 0.2, name


def test_typical_marks_what_is_missing(tmp_path, generator):
    rows = generator.integers(0, 256, (4, 6, 8, 8), dtype=np.uint8)
    full = ink(plot_typical(tmp_path / "full.png", rows, True, np.full(4, 500)))
    some = imread(plot_typical(tmp_path / "some.png", rows, True, np.array([500, 2, 0, 500])))
    grey = np.isclose(some[..., :3], np.array([0xEE, 0xF1, 0xF4]) / 255, atol=0.005).all(-1).mean()
    assert full > 0.2
    assert grey > 0.1


@pytest.mark.parametrize("fill", [0, 7])
def test_constant_and_not_finite_tiles_are_drawn(tmp_path, fill):
    samples = np.full((2, 3, 6, 6), fill, np.float32)
    assert ink(plot_samples(tmp_path / "constant.png", samples, image=True)) > 0
    samples[0] = np.nan
    assert ink(plot_samples(tmp_path / "nan.png", samples, image=True)) > 0


@pytest.mark.parametrize("shape", [(3, 4, 8), (3, 4, 8, 8, 2), (0, 4, 8, 8)])
def test_shapes_that_are_no_images_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match=re.escape(f"got {shape}")):
        plot_samples(tmp_path / "x.png", np.zeros(shape), image=True)


@pytest.mark.parametrize(("n_clusters", "n_features"), [(1, 1), (5, 30), (100, 2048)])
def test_features_become_a_heat_map(tmp_path, generator, n_clusters, n_features):
    samples = generator.normal(size=(n_clusters, 3, n_features))
    assert ink(plot_samples(tmp_path / "profiles.png", samples, image=False)) > 0.02
    sizes = np.arange(n_clusters)
    assert ink(plot_typical(tmp_path / "typical.png", samples, False, sizes)) > 0.02
    names = [f"{i} $\\frac$ of a column with a very long name" for i in range(n_features)]
    named = plot_samples(tmp_path / "named.png", samples, image=False, names=names)
    plain = plot_samples(tmp_path / "plain.png", samples, image=False)
    assert (named.read_bytes() == plain.read_bytes()) == (n_features > 40), "shown where there is room"


def test_profiles_are_relative_to_the_spread_and_leave_out_what_does_not_count(generator):
    rows = generator.normal(size=(3, 4, 2)) * [1.0, 1000.0]
    sizes = np.array([4, 2, 0])
    counted = np.concatenate([rows[0], rows[1, :2]])
    means = np.stack([rows[0].mean(0), rows[1, :2].mean(0)])
    got = relative_profiles(rows, sizes)
    np.testing.assert_allclose(got[:2], (means - means.mean(0)) / counted.std(0))
    assert np.isnan(got[2]).all()
    assert (relative_profiles(np.full((2, 3, 1), 0.1), None) == 0).all()


# Latent space


def test_latent_beside_the_prior(tmp_path, generator):
    centres = generator.normal(size=(3, 4)) * 10
    ids = np.repeat(np.arange(3), 20)
    z = centres[ids] + generator.normal(size=(60, 4))
    one = plot_latent(tmp_path / "one.png", z, ids, acc=0.987)
    two = plot_latent(tmp_path / "two.png", z, ids, z + 0.1, ids, seed=3, max_points=80)
    assert ink(one) > 0.01
    assert ink(two) > 0.01
    assert imread(two).shape[1] > 1.5 * imread(one).shape[1]


def test_the_same_seed_draws_the_same_picture(tmp_path, generator):
    z, ids = generator.normal(size=(50, 3)), generator.integers(0, 25, 50)
    first = plot_latent(tmp_path / "a.png", z, ids, seed=5, max_points=30).read_bytes()
    assert plot_latent(tmp_path / "b.png", z, ids, seed=5, max_points=30).read_bytes() == first
    assert plot_latent(tmp_path / "c.png", z, ids, seed=6, max_points=30).read_bytes() != first


def test_the_plane_keeps_clusters_apart(generator):
    ids = np.repeat(np.arange(3), 30)
    z = generator.normal(size=(3, 6))[ids] * 20 + generator.normal(size=(90, 6))
    plane = reduce_to_plane(z, seed=0)
    centres = np.stack([plane[ids == index].mean(0) for index in range(3)])
    nearest = np.linalg.norm(plane[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == ids).all()


@pytest.mark.parametrize(
    "z",
    [
        np.zeros((1, 3)),
        np.arange(6.0).reshape(3, 2),
        np.ones((20, 5)),
        np.linspace(0, 1, 8)[:, None],
        np.full((4, 2), np.nan),
        np.where(np.arange(40).reshape(20, 2) == 7, np.inf, np.arange(40).reshape(20, 2)),
    ],
    ids=["one row", "three rows", "all equal", "one dimension", "no finite row", "one infinite"],
)
def test_degenerate_latents_are_drawn(tmp_path, z):
    assert ink(plot_latent(tmp_path / "latent.png", z, np.arange(len(z)) % 3)) > 0


def test_latent_names_what_does_not_fit(tmp_path):
    z, ids = np.zeros((6, 2)), np.zeros(6, int)
    with pytest.raises(ValueError, match="both or neither"):
        plot_latent(tmp_path / "x.png", z, ids, prior=z)
    with pytest.raises(ValueError, match="differ in width"):
        plot_latent(tmp_path / "x.png", z, ids, np.zeros((6, 3)), ids)
    with pytest.raises(ValueError, match=r"its clusters \(5,\)"):
        plot_latent(tmp_path / "x.png", z, ids[:5])


# History


@pytest.mark.parametrize(
    "history",
    [
        [],
        epochs(1),
        epochs(30),
        epochs(30, bound=lambda i: math.nan if i > 20 else -3.0),
        epochs(12, bound=lambda i: None, epsilon_x=lambda i: 0.0, epsilon_z=lambda i: 0.0),
        epochs(30, bound=lambda i: -(10.0 ** (i / 2)), learning_rate=lambda i: 1e-3 * 0.5 ** (i // 4)),
        epochs(30, bound=lambda i: -1e7 if i == 0 else -300.0 + i, seconds=lambda i: 5000.0),
        epochs(60, epsilon_x=lambda i: 0.97**i),
        [{"epoch": 0, "bound": -1.0}, {"epoch": 1}],
    ],
    ids=["none", "one", "plain", "nan", "null", "diverged", "outlier", "many stages", "missing keys"],
)
def test_history_of_any_kind_is_drawn(tmp_path, history):
    assert ink(plot_history(tmp_path / "history.png", history)) > 0.002


def test_restarts_are_drawn_with_the_chosen_one_on_top(tmp_path):
    runs = [epochs(20, bound=lambda i, s=s: -100.0 * s + i) for s in range(3)]
    first = plot_history(tmp_path / "first.png", runs, chosen=0).read_bytes()
    last = plot_history(tmp_path / "last.png", runs, chosen=2).read_bytes()
    assert first != last
    assert ink(tmp_path / "first.png") > 0.002
    with pytest.raises(ValueError, match="no restart 3, only 0 to 2"):
        plot_history(tmp_path / "x.png", runs, chosen=3)


def test_one_wild_epoch_does_not_flatten_the_curve():
    values = np.concatenate([[-1e7], np.linspace(-300, -200, 50), [np.nan]])
    low, high = readable_range(values)
    assert -400 < low < -290
    assert -210 < high < -150
    assert readable_range(np.linspace(-300, -200, 50)) is None
    assert readable_range(np.full(20, -5.0)) is None
    assert readable_range(np.array([np.nan, 1.0])) is None


# Style


def test_a_hundred_clusters_all_look_different():
    for n_clusters in (10, 20, 100):
        assert len({cluster_style(index, n_clusters) for index in range(n_clusters)}) == n_clusters


def test_drawing_works_outside_the_main_thread(tmp_path):
    errors = []

    def draw(index):
        try:
            plot_history(tmp_path / f"{index}.png", epochs(5))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert ink(tmp_path / "0.png") > 0.002
