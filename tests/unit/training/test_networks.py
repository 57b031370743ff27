"""Convolutional encoder and decoder: shapes, precision, and where they are used."""

from __future__ import annotations

import pytest
import torch

from serving.manifest import InputSpec
from training.config import TrainingConfig
from training.model import NVISAModel
from training.networks import PixelHead, conv, conv_decoder, network_for
from training.precision import matrix_products
from training.schedule import epoch_generator
from training.step import batch_objective

SHAPES = [(28, 28), (17, 23), (32, 32, 3), (3, 32, 32), (8, 8), (5, 5, 1)]


def spec(shape: tuple[int, ...]) -> InputSpec:
    return InputSpec(dtype="uint8", shape=shape, meaning="image")


@pytest.mark.parametrize("shape", SHAPES)
def test_encoder_gives_a_row_of_features_whatever_the_image(shape):
    own = spec(shape)
    trunk = conv(own, (64, 32))
    assert trunk(torch.rand(3, own.row_size)).shape == (3, 32)
    assert (trunk.in_features, trunk.out_features) == (own.row_size, 32)


@pytest.mark.parametrize("shape", SHAPES)
def test_decoder_and_its_head_give_the_image_back_in_the_order_of_the_row(shape):
    own = spec(shape)
    trunk = conv_decoder(4, own)
    hidden = trunk(torch.rand(3, 4))
    assert hidden.shape == (3, trunk.out_features)
    head = PixelHead(trunk.out_features, own)
    assert head(hidden).shape == (3, own.row_size)
    # One bias for each channel: a row that is constant within channels shows where they ended up.
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.arange(1.0, len(head.linear.bias) + 1))
    row = head(hidden)[0].view(shape)
    for channel, value in enumerate(head.linear.bias.tolist()):
        part = row if len(shape) == 2 else row[channel] if shape[0] == 3 else row[..., channel]
        assert (part == value).all()


def test_pixel_head_stays_float32_under_autocast():
    head = PixelHead(16 * 28 * 28, spec((28, 28)))
    hidden = torch.randn(2, 16 * 28 * 28)
    with matrix_products(torch.device("cpu"), "low"):
        found = head(hidden.bfloat16())
    assert found.dtype == torch.float32


@pytest.mark.parametrize("objective", ["vimco", "elbo"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_every_parameter_of_a_convolutional_model_learns(objective, likelihood):
    config = TrainingConfig(
        n_clusters=3,
        network="conv",
        decoder="conv",
        objective=objective,
        likelihood=likelihood,
        pathwise_z=True,
        hidden_sizes=(32,),
        n_importance_samples=2,
        latent_dim=3,
    )
    torch.manual_seed(0)
    model = NVISAModel(config, spec((20, 20)))
    rows = torch.randint(0, 256, (6, 20, 20), dtype=torch.uint8)
    generator = epoch_generator(0, 0, rows.device)
    step = batch_objective(model, None, model.preprocess(rows, generator), config, generator)
    assert step.objective.bound.isfinite().all()
    (-step.objective.surrogate.mean()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still
    assert model.x_given_z(torch.zeros(2, 3)).shape == (2, 400)


def test_auto_takes_convolutions_where_images_are_large_enough():
    assert network_for("auto", spec((28, 28))) == "conv"
    assert network_for("auto", spec((8, 8))) == "mlp"
    assert network_for("auto", InputSpec(dtype="float32", shape=(2048,), meaning="features")) == "mlp"
    assert network_for("conv", spec((8, 8))) == "conv"


def test_convolutions_over_features_are_refused():
    with pytest.raises(ValueError, match="no images: use network=mlp"):
        NVISAModel(TrainingConfig(network="conv"), InputSpec(dtype="float32", shape=(9,), meaning="features"))
