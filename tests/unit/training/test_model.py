"""The model against what can be computed exactly, and the invariants of its standard deviations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as D

from serving.manifest import InputSpec
from training.config import TrainingConfig
from training.model import Baseline, Encoding, NVISAModel
from training.precision import matrix_products
from training.step import BLOCK_VALUES, batch_objective, row_bounds, rows_at_once

K, L, WIDTH, NOISE = 3, 2, 4, 0.3


class LinearGaussianMixture(NVISAModel):
    """NVISA with a linear decoder, and for q the exact posterior, widened by ``blur``."""

    def __init__(self, blur: float = 1.0, mean_field: bool = False) -> None:
        config = TrainingConfig(n_clusters=K, latent_dim=L, hidden_sizes=(5,), mean_field=mean_field)
        super().__init__(config, InputSpec(dtype="float32", shape=(WIDTH,), meaning="features"))
        self.double()
        generator = torch.Generator().manual_seed(0)
        self.blur = blur
        self.decoder = nn.Identity()
        self.x_mean = nn.Linear(L, WIDTH).double()
        self.x_raw_std = nn.Linear(L, WIDTH).double()
        for layer, bias in ((self.x_mean, 0.2), (self.x_raw_std, -50.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)
        with torch.no_grad():
            self.x_mean.weight.copy_(torch.randn(WIDTH, L, generator=generator, dtype=torch.float64))
            self.prior_mean.copy_(2 * torch.randn(K, L, generator=generator, dtype=torch.float64))
            self.epsilon_x.fill_(NOISE)  # σ = SoftPlus(-50) + ε

    def marginals(self) -> D.MultivariateNormal:
        """p(x|y) for each y."""
        mean, std = self.p_z(torch.arange(K))
        a = self.x_mean.weight
        covariance = a @ torch.diag_embed(std**2) @ a.T + NOISE**2 * torch.eye(WIDTH, dtype=torch.float64)
        return D.MultivariateNormal(mean @ a.T + self.x_mean.bias, covariance)

    def log_p(self, x: Tensor) -> Tensor:
        """Exact log p(x)."""
        return torch.logsumexp(self.marginals().log_prob(x[:, None]) - math.log(K), -1)

    def encode(self, x: Tensor) -> Encoding:
        return Encoding(x, torch.log_softmax(self.marginals().log_prob(x[:, None]) / self.blur, -1))

    def q_z(self, hidden: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # The posterior of z has a full covariance; these decoders have orthogonal columns (see the fixture),
        # so that it is diagonal and q can hold it exactly.
        mean, std = self.p_z(y)
        a = self.x_mean.weight
        precision = std**-2 + (a**2).sum(0) / NOISE**2
        centre = (mean * std**-2 + (hidden - self.x_mean.bias) @ a / NOISE**2) / precision
        return centre, self.blur * precision.rsqrt()


def solvable(blur: float = 1.0) -> tuple[LinearGaussianMixture, Tensor]:
    model = LinearGaussianMixture(blur)
    with torch.no_grad():
        q, _ = torch.linalg.qr(model.x_mean.weight)
        model.x_mean.weight.copy_(1.5 * q)
    x = model.marginals().sample((6,)).flatten(0, 1)
    return model, x


def config_of(objective: str, n_samples: int) -> TrainingConfig:
    return TrainingConfig(n_clusters=K, latent_dim=L, objective=objective, n_importance_samples=n_samples)


@pytest.mark.parametrize(("objective", "n_samples"), [("vimco", 2), ("vimco", 7), ("nvil", 1), ("elbo", 2)])
@torch.no_grad()
def test_bound_is_log_p_when_q_is_the_exact_posterior(objective, n_samples):
    torch.manual_seed(0)
    model, x = solvable()
    baseline = Baseline(WIDTH, 4).double()
    step = batch_objective(model, baseline, x, config_of(objective, n_samples), torch.Generator())
    torch.testing.assert_close(step.objective.bound, model.log_p(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(row_bounds(model, x, 3, torch.Generator()), model.log_p(x), rtol=0, atol=1e-9)


@torch.no_grad()
def test_bound_stays_below_log_p_and_rises_with_the_number_of_samples():
    torch.manual_seed(0)
    model, x = solvable(blur=1.6)
    x = x[:6]
    exact = model.log_p(x)
    means, errors = [], []
    for n_samples in (2, 4, 16, 64):
        generator = torch.Generator().manual_seed(n_samples)
        draws = torch.stack(
            [
                batch_objective(model, None, x, config_of("vimco", n_samples), generator).objective.bound
                for _ in range(400)
            ]
        ).mean(1)
        means.append(draws.mean().item())
        errors.append(draws.std().item() / 20)
    assert all(mean < exact.mean().item() + 4 * error for mean, error in zip(means, errors, strict=True))
    assert means[0] < exact.mean().item() - 0.1, "q is too good to show anything"
    assert all(
        later > earlier - 4 * error for earlier, later, error in zip(means, means[1:], errors, strict=False)
    )
    assert means[-1] > means[0] + 0.05


def small_model(**changes) -> NVISAModel:
    torch.manual_seed(0)
    config = TrainingConfig(n_clusters=K, latent_dim=L, hidden_sizes=(8, 6), **changes)
    return NVISAModel(config, InputSpec(dtype="uint8", shape=(4, 4), meaning="image"))


@pytest.mark.parametrize("mean_field", [False, True])
def test_a_corner_of_the_simplex_is_its_cluster(mean_field):
    model = small_model(mean_field=mean_field)
    with torch.no_grad():
        model.prior_raw_std.normal_()
    hidden, y = torch.randn(5, 6), torch.randint(K, (4, 5))
    corners = torch.nn.functional.one_hot(y, K).float()
    torch.testing.assert_close(model.q_z_relaxed(hidden, corners), model.q_z(hidden, y))
    torch.testing.assert_close(model.p_z_relaxed(corners), model.p_z(y))


def test_the_relaxed_bound_comes_to_the_enumerated_one_as_the_temperature_falls():
    model = small_model()
    x = torch.rand(6, 16)
    with torch.no_grad():
        model.prior_mean.mul_(3)

        def bounds(**changes):
            config = TrainingConfig(n_clusters=K, latent_dim=L, n_importance_samples=4000, **changes)
            generator = torch.Generator().manual_seed(1)
            return batch_objective(model, None, x, config, generator).objective.bound

        exact = bounds(objective="elbo")
        errors = {
            temperature: (bounds(objective="gumbel", temperature=temperature) - exact).abs().max().item()
            for temperature in (1e-3, 1.0)
        }
    assert errors[1e-3] < 0.2 < errors[1.0]


def test_the_relaxed_objective_teaches_q_of_y():
    # Of two clusters one explains the rows: z near its prior's mean is decoded to them.
    torch.manual_seed(0)
    model, x = small_model(), torch.rand(64, 16)
    config = TrainingConfig(n_clusters=K, latent_dim=L, objective="gumbel", n_importance_samples=64)
    with torch.no_grad():
        model.prior_mean.copy_(torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0]]))
        model.z_from_y.zero_()
    optimiser = torch.optim.SGD(model.y_head.parameters(), 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        optimiser.zero_grad()
        (-batch_objective(model, None, x, config, generator).objective.surrogate.mean()).backward()
        optimiser.step()
    # q(z|y,x) is the same for all y, near zero, where the first cluster's prior is.
    assert (model.encode(x).log_q_y.exp()[:, 0] > 0.9).all()


def test_stds_keep_their_lower_bounds():
    model = small_model()
    model.epsilon_z.fill_(0.25)
    with torch.no_grad():
        model.z_raw_std.bias.fill_(-100.0)
        model.prior_raw_std.fill_(-3.0)
    hidden = model.encode(torch.rand(5, 16)).hidden
    assert (model.q_z(hidden, torch.zeros(2, 5, dtype=torch.long))[1] >= 0.25).all()
    assert (model.p_z(torch.arange(K))[1] > 1).all()


def test_y_reaches_q_of_z_unless_mean_field():
    for mean_field in (False, True):
        model = small_model(mean_field=mean_field)
        hidden = model.encode(torch.rand(5, 16)).hidden
        mean, _ = model.q_z(hidden, torch.arange(K)[:, None].expand(K, 5))
        assert torch.allclose(mean[0], mean[1]) == mean_field


def test_one_hot_and_added_vector_are_the_same_map():
    model = small_model()
    hidden = model.encode(torch.rand(5, 16)).hidden
    y = torch.tensor([0, 1, 2, 1, 0])
    joined = torch.cat([hidden, torch.eye(K)[y]], -1)
    weight = torch.cat([model.z_from_x.weight, model.z_from_y.T], 1)
    features = torch.nn.functional.leaky_relu(joined @ weight.T + model.z_from_x.bias, 0.2)
    torch.testing.assert_close(model.q_z(hidden, y)[0], model.z_mean(features))


def test_dequantisation():
    model = small_model()
    rows = torch.tensor([0, 128, 255], dtype=torch.uint8).repeat(1, 6)[:, :16].reshape(1, 4, 4)
    still = model.preprocess(rows)
    torch.testing.assert_close(still.flatten()[:3], torch.tensor([0.5, 128.5, 255.5]) / 256)
    noisy = model.preprocess(rows, torch.Generator().manual_seed(0))
    assert ((noisy - still).abs() <= 0.5 / 256 + 1e-6).all()
    assert not torch.equal(noisy, model.preprocess(rows, torch.Generator().manual_seed(1)))


def test_bernoulli_draws_binary_images_for_training_only():
    model = small_model(likelihood="bernoulli")
    rows = torch.full((2000, 4, 4), 51, dtype=torch.uint8)
    drawn = model.preprocess(rows, torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.2, abs=0.01)
    torch.testing.assert_close(model.preprocess(rows), torch.full((2000, 16), 0.2))


def test_x_given_z_undoes_preprocessing():
    spec = InputSpec(dtype="float32", shape=(4,), meaning="features")
    model = NVISAModel(TrainingConfig(n_clusters=K, latent_dim=L, hidden_sizes=(8,)), spec)
    x = torch.randn(50, 4) * torch.tensor([1.0, 10.0, 0.1, 0.0]) + 5
    model.standardise_as(x.mean(0), x.std(0, correction=0))
    standard = model.preprocess(x)
    torch.testing.assert_close(standard[:, :3].std(0, correction=0), torch.ones(3), rtol=1e-4, atol=1e-4)
    assert standard[:, 3].abs().max() < 1e-6, "a constant column is centred, not blown up"
    model.x_mean.weight.data.zero_()
    model.x_mean.bias.data.copy_(standard[7])
    torch.testing.assert_close(model.x_given_z(torch.zeros(1, L))[0], x[7], rtol=1e-4, atol=1e-4)


def test_a_constant_column_keeps_its_scale_though_its_std_is_rounding():
    spec = InputSpec(dtype="float32", shape=(2,), meaning="features")
    model = NVISAModel(TrainingConfig(n_clusters=K, latent_dim=L, hidden_sizes=(8,)), spec)
    x = torch.stack([torch.full((1797,), 0.1), torch.randn(1797)], 1).double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std[0] += 1e-17  # what another order of summation leaves
    model.standardise_as(mean, std)
    assert model.scale[0] == 1
    assert model.preprocess(torch.tensor([[0.2, 0.0]]))[0, 0].item() == pytest.approx(0.1)


def test_rows_at_once_counts_the_widest_layer():
    model = small_model()
    assert rows_at_once(model, 2) == BLOCK_VALUES // (2 * K * 16)
    config = TrainingConfig(n_clusters=K, latent_dim=L, hidden_sizes=(64,))
    narrow = NVISAModel(config, InputSpec(dtype="float32", shape=(2,), meaning="features"))
    assert rows_at_once(narrow, 2) == BLOCK_VALUES // (2 * K * 64), "hidden layers outgrow narrow rows"


def test_low_precision_touches_no_density():
    model = small_model()
    x = torch.rand(64, 16)
    z = torch.randn(5, 64, L)
    y = torch.zeros(5, 64, dtype=torch.long)
    with matrix_products(torch.device("cpu"), "low"):
        low = model.log_joint(x, y, z)
        hidden = model.encode(x).hidden
        mean, std = model.q_z(hidden, y)
    assert hidden.dtype == torch.bfloat16, "the trunk was meant to run in bfloat16"
    assert low.dtype == mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(low, model.log_joint(x, y, z), rtol=0.02, atol=0.2)
    assert not torch.is_autocast_enabled("cpu")


def test_heads_train_the_same_under_autocast():
    model = small_model()
    x, config = torch.rand(64, 16), TrainingConfig(n_clusters=K, latent_dim=L, hidden_sizes=(8, 6))
    gradients = []
    for precision in ("float32", "low"):
        with matrix_products(torch.device("cpu"), precision):
            step = batch_objective(
                model,
                None,
                x,
                config.model_copy(update={"objective": "elbo"}),
                torch.Generator().manual_seed(0),
            )
        gradients.append(torch.autograd.grad(step.objective.surrogate.mean(), list(model.parameters())))
    for exact, low in zip(*gradients, strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, exact, rtol=0.1, atol=0.05 * float(exact.abs().max()) + 1e-6)


def test_pathwise_z_has_the_gradient_of_the_score_function_and_less_variance_when_cold():
    model = small_model()
    for epsilon, raw in ((model.epsilon_x, model.x_raw_std), (model.epsilon_z, model.z_raw_std)):
        epsilon.fill_(0.03)
        torch.nn.init.constant_(raw.bias, -6.0)
    x = torch.rand(1, 16).expand(4000, 16)
    means, variances = {}, {}
    for pathwise in (False, True):
        config = TrainingConfig(
            n_clusters=K, latent_dim=L, hidden_sizes=(8, 6), n_importance_samples=3, pathwise_z=pathwise
        )
        generator = torch.Generator().manual_seed(7)
        draws = []
        for _ in range(60):
            step = batch_objective(model, None, x, config, generator)
            (gradient,) = torch.autograd.grad(step.objective.surrogate.mean(), model.z_mean.weight)
            draws.append(gradient)
        means[pathwise] = torch.stack(draws).mean(0)
        variances[pathwise] = torch.stack(draws).var(0)
    error = ((variances[False] + variances[True]) / 60).sqrt()
    assert ((means[False] - means[True]).abs() < 5 * error).all()
    assert means[True].abs().max() > 10 * error.max(), "the gradient is lost in the noise"
    assert variances[True].sum() < 0.5 * variances[False].sum()


@pytest.mark.parametrize("mean_field", [False, True])
def test_z_head_once_for_each_cluster_is_the_head_for_each_sample(mean_field):
    model = small_model(mean_field=mean_field)
    hidden = model.encode(torch.rand(5, 16)).hidden.detach().requires_grad_()
    y = torch.randint(0, K, (4 * K, 5), generator=torch.Generator().manual_seed(0))
    leaves = [hidden, *(p for n, p in model.named_parameters() if n.startswith("z_"))]

    def outcome(parts):
        mean, std = (
            torch.cat(values) for values in zip(*(model.q_z(hidden, part) for part in parts), strict=True)
        )
        weights = torch.linspace(-1, 1, mean.numel()).view_as(mean)
        return mean, std, torch.autograd.grad((weights * (mean + std.log())).sum(), leaves)

    torch.testing.assert_close(outcome([y]), outcome(y.split(K)))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_many_samples_in_chunks_give_the_same_gradient_and_keep_less(likelihood, monkeypatch):
    """What is kept for the backward pass must not grow with M times the width of a row."""
    spec = InputSpec(dtype="uint8", shape=(16, 16), meaning="image")
    torch.manual_seed(0)
    settings = {"n_clusters": K, "latent_dim": L, "hidden_sizes": (8,), "likelihood": likelihood}
    model = NVISAModel(TrainingConfig(**settings), spec)
    x = torch.rand(4, 256).round()

    def outcome(n_samples, chunk_values):
        monkeypatch.setattr("training.model.CHUNK_VALUES", chunk_values)
        kept = {}

        def pack(tensor):
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        config = TrainingConfig(**settings, n_importance_samples=n_samples)
        generator = torch.Generator().manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step = batch_objective(model, None, x, config, generator)
        gradient = torch.autograd.grad(step.objective.surrogate.mean(), list(model.parameters()))
        return step.objective.bound, gradient, sum(kept.values())

    whole, in_chunks = outcome(40, 2**24), outcome(40, 4 * 4 * 256)
    torch.testing.assert_close(whole[:2], in_chunks[:2], rtol=1e-4, atol=1e-4)
    outputs = 40 * 4 * 256
    assert whole[2] > outputs, "the test counts the wrong things"
    assert in_chunks[2] < outputs / 2
    assert outcome(160, 4 * 4 * 256)[2] < 4 * in_chunks[2]
