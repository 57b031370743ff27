"""Small affine maps of images: what they do, and to which rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass

from serving.manifest import InputSpec
from training import augment
from training.augment import affine, augments, channels_first, to_images, to_rows


def spec(*shape: int, dtype: str = "uint8") -> InputSpec:
    return InputSpec(dtype=dtype, shape=shape, meaning="image" if dtype == "uint8" else "features")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((28, 20), (1, 28, 20)), ((32, 30, 3), (3, 32, 30)), ((3, 32, 30), (3, 32, 30)), ((8, 8, 1), (1, 8, 8))],
)
def test_rows_become_images_and_rows_again(shape, expected):
    rows = torch.arange(2.0 * np.prod(shape)).view(2, -1)
    images = to_images(rows, spec(*shape))
    assert images.shape == (2, *expected) == (2, *channels_first(spec(*shape)))
    assert torch.equal(to_rows(images, spec(*shape)), rows)
    if shape == (32, 30, 3):
        assert torch.equal(images[0, 1, 5], rows[0].view(shape)[5, :, 1])


def test_features_are_no_images():
    with pytest.raises(ValueError, match="no images: use network=mlp"):
        channels_first(spec(4, dtype="float32"))


def test_auto_changes_images_of_enough_pixels_alone():
    assert augments("auto", spec(28, 28))
    assert augments("auto", spec(3, 32, 32))
    assert not augments("auto", spec(8, 8))
    assert not augments("auto", spec(2048, dtype="float32"))
    assert augments(True, spec(8, 8))
    assert not augments(False, spec(28, 28))


def test_without_extent_the_map_is_the_identity(monkeypatch):
    for name in ("TURN", "LOG_SCALE", "SHEAR", "SHIFT"):
        monkeypatch.setattr(augment, name, 0.0)
    rows = torch.rand(3, 28 * 28)
    torch.testing.assert_close(affine(rows, spec(28, 28), torch.Generator().manual_seed(0)), rows)


def test_an_image_moves_by_at_most_two_pixels_of_28_and_differently_each_time(monkeypatch):
    for name in ("TURN", "LOG_SCALE", "SHEAR"):
        monkeypatch.setattr(augment, name, 0.0)
    image = torch.zeros(28, 28)
    image[12:16, 10:18] = 1
    rows = image.flatten().repeat(200, 1)
    changed = affine(rows, spec(28, 28), torch.Generator().manual_seed(0)).view(-1, 28, 28)
    moved = np.array([center_of_mass(one.numpy()) for one in changed]) - center_of_mass(image.numpy())
    assert np.abs(moved).max() <= 2.01
    assert np.abs(moved).max(0).min() > 1.7, "both ways are used to their ends"
    assert len(np.unique(moved.round(4), axis=0)) > 190


def test_the_same_generator_gives_the_same_images():
    rows = torch.rand(4, 3 * 20 * 20)
    first, second = (affine(rows, spec(20, 20, 3), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, rows)
