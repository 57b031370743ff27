"""``torchvision:NAME`` with a stand-in for the library, which tests do without."""

from __future__ import annotations

import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.backbone import BackboneError, read_backbone
from training.data import describe
from training.extractor import Extractor

SIDE = 16
MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip


@pytest.fixture
def models(monkeypatch):
    """A ``torchvision.models`` of one network, as far as it is used."""
    transforms = types.SimpleNamespace(crop_size=[SIDE], mean=MEAN, std=STD)
    weights = types.SimpleNamespace(transforms=lambda: transforms, url="https://there/tiny-1234.pth")
    asked = []

    def get_model_weights(name):
        if name != "tiny":
            raise ValueError(f"Unknown model {name}")
        return {"IMAGENET1K_V1": weights}

    def get_model(name, weights):
        asked.append((name, weights))
        return network()

    library, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    library.models, models.get_model_weights, models.get_model = models, get_model_weights, get_model
    monkeypatch.setitem(sys.modules, "torchvision", library)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    models.asked, models.weights = asked, weights
    return models


def test_the_map_before_its_average_becomes_features(models):
    backbone = read_backbone("torchvision:tiny")
    assert models.asked == [("tiny", models.weights)]
    assert (backbone.recipe.size, backbone.recipe.mean, backbone.recipe.std) == ((SIDE, SIDE), MEAN, STD)
    x = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)
    images = F.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255, (SIDE, SIDE), mode="bilinear"
    )
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = network().eval()[:5](images).numpy()
    np.testing.assert_allclose(Extractor(backbone, describe(x), "cpu", 1)(x), expected, atol=2e-5)
    assert read_backbone("torchvision:tiny").recipe == backbone.recipe, "it resumes under the same digest"


def test_logits_are_no_features(models):
    models.get_model = lambda name, weights: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 10))
    with pytest.raises(BackboneError, match=r"averages no feature map.*--tensor"):
        read_backbone("torchvision:tiny")


@pytest.mark.parametrize("name", ["resnet5", "tiny@NONE"])
def test_unknown_networks_and_weights(name, models):
    with pytest.raises(BackboneError, match="there are no such network and weights"):
        read_backbone(f"torchvision:{name}")


def test_weights_that_cannot_be_downloaded(models):
    def unreachable(name, weights):
        raise URLError("no route")

    models.get_model = unreachable
    with pytest.raises(
        BackboneError, match=r"cannot be had: .*no route.*put the file tiny-1234\.pth into .*check"
    ):
        read_backbone("torchvision:tiny")


@pytest.mark.parametrize("library", [None, "another torch's"])
def test_a_library_that_cannot_be_imported(library, monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    if library is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    else:
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(BackboneError, match=r"torchvision cannot be used: .*install nvisa\[features\]"):
        read_backbone("torchvision:resnet50")
