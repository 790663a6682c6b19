"""The meta-gradient four ways: dual numbers, double backward, n reverse passes, and finite differences."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from elite_pl.algorithm import alice
from elite_pl.models import networks, scores

N, M, LEARNING_RATE = 12, 6, 0.05


class Residual(nn.Module):
    """Affine batch normalization, a skip connection, global pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, sample):
        hidden = self.norms[0](self.stem(sample)).relu()
        return (hidden + self.norms[1](self.block(hidden))).square().mean((1, 2, 3))


CASES = {
    "mlp": ((9,), lambda shape: scores.Hypersphere(networks.mlp(shape, (8, 6), 4, norm="none"))),
    "mlp, batch norm": ((9,), lambda shape: scores.Hypersphere(networks.mlp(shape, (8, 6), 4))),
    "mlp, squared": ((9,), lambda shape: scores.Hypersphere(networks.mlp(shape, (8, 6), 4), squared=True)),
    "mlp, layer norm": ((9,), lambda shape: scores.Hypersphere(networks.mlp(shape, (8, 6), 4, norm="layer"))),
    "lenet, layer norm": ((1, 8, 8), lambda shape: scores.Hypersphere(networks.lenet(shape, (3, 2), 16, norm="layer"))),
    "lenet": ((1, 8, 8), lambda shape: scores.Hypersphere(networks.lenet(shape, (3, 2), 16))),
    "autoencoder": ((1, 9, 7), lambda shape: scores.Reconstruction(networks.lenet(shape, (3, 2), 16))),
    "residual": ((3, 6, 6), lambda shape: Residual()),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(", ", "-"))
def problem(request):
    """A score in training mode with a batch, a labeled batch, its labels and a margin that some scores exceed."""
    torch.manual_seed(0)
    shape, make = CASES[request.param]
    score = make(shape).double()
    for name, buffer in score.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(*((-0.2, 0.2) if name.endswith("mean") else (0.5, 1.5)))
    unlabeled, labeled = torch.rand(N, *shape).double(), torch.rand(M, *shape).double()
    label = torch.tensor([1.0, -1.0] * (M // 2)).double()
    with torch.no_grad():
        margin = copy.deepcopy(score)(labeled).median() * 1.05
    return score, unlabeled, labeled, label, margin


def infer(function, problem, **options):
    score, *rest = problem
    return function(copy.deepcopy(score), *rest, learning_rate=LEARNING_RATE, **options)


def relative_difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def test_jvp_equals_the_virtual_step(problem, record_property):
    for statistics in ("batch", "running"):
        fast = infer(alice.jvp, problem, labeled_statistics=statistics)
        literal = infer(alice.virtual_step, problem, labeled_statistics=statistics)
        difference = relative_difference(fast.d, literal.d)
        record_property(f"difference of d ({statistics} statistics)", difference)
        assert literal.d.abs().max() > 0
        assert difference <= 1e-9
        for one, other in zip(fast, literal, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def reverse_passes(problem):
    """d by n reverse passes through one shared forward pass, and the gradients of each score as rows."""
    score, unlabeled, labeled, label, margin = problem
    score = copy.deepcopy(score)
    theta = list(score.parameters())
    output = score(labeled)
    loss = torch.where(label > 0, output, torch.relu(margin - output)).mean()
    v = torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta)])
    output = score(unlabeled)
    rows = [torch.autograd.grad(output[i], theta, retain_graph=True) for i in range(N)]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return jacobian @ v, jacobian


@pytest.mark.parametrize("function", [alice.jvp, alice.virtual_step])
def test_equals_reverse_passes(problem, function):
    assert relative_difference(infer(function, problem).d, reverse_passes(problem)[0]) <= 1e-9


@pytest.mark.parametrize("function", [alice.jvp, alice.virtual_step])
def test_equals_finite_differences_of_the_validation_loss(problem, function):
    score, _, labeled, label, margin = problem
    _, jacobian = reverse_passes(problem)
    theta = nn.utils.parameters_to_vector(score.parameters()).detach()

    def validation_loss(pseudo_label):
        moved = copy.deepcopy(score)
        step = LEARNING_RATE * (pseudo_label @ jacobian) / N
        nn.utils.vector_to_parameters(theta - step, moved.parameters())
        with torch.no_grad():
            output = moved(labeled)
        return torch.where(label > 0, output, torch.relu(margin - output)).mean()

    width = 1e-5 * torch.eye(N).double()
    measured = torch.stack([(validation_loss(h) - validation_loss(-h)) / 2e-5 for h in width])
    assert relative_difference(infer(function, problem).meta_gradient, measured) <= 1e-5


def test_record_follows_the_paper(problem):
    raw, mean, signed = (
        infer(alice.jvp, problem, weights=weights, meta_scale=3.0) for weights in ("raw", "mean", "signed")
    )
    torch.testing.assert_close(raw.meta_gradient, -LEARNING_RATE / N * raw.d)  # Eq. 13
    assert raw.pseudo_label.equal(-torch.sign(raw.meta_gradient))  # Eq. 10
    torch.testing.assert_close(raw.weight, 3.0 * raw.meta_gradient.abs())  # Eq. 14
    torch.testing.assert_close(mean.weight, 3.0 * raw.d.abs() / raw.d.abs().mean())
    torch.testing.assert_close(signed.weight, 3.0 * LEARNING_RATE * raw.d)  # Eq. 16, of a virtual step on the sum


def test_scores_carry_the_graph_of_a_plain_forward_pass(problem):
    score, unlabeled, *_ = problem
    for function in (alice.jvp, alice.virtual_step):
        ours, plain = copy.deepcopy(score), copy.deepcopy(score)
        inference = function(ours, *problem[1:], learning_rate=LEARNING_RATE)
        (inference.weight * inference.score).mean().backward()
        (inference.weight * plain(unlabeled)).mean().backward()
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            assert relative_difference(p.grad, q.grad) <= 1e-14
        for b, c in zip(ours.buffers(), plain.buffers(), strict=True):
            # only the forward pass of the unlabeled batch moves the running statistics
            torch.testing.assert_close(b, c, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("function", [alice.jvp, alice.virtual_step])
def test_no_validation_gradient_means_no_weight(problem, function):
    score, unlabeled, labeled, _, _ = problem
    anomalies, tiny = -torch.ones(M).double(), 1e-12  # every labeled anomaly is beyond the margin
    inference = function(score, unlabeled, labeled, anomalies, tiny, learning_rate=0.1, weights="mean")
    assert inference.d.eq(0).all() and inference.weight.eq(0).all()
    assert inference.pseudo_label.eq(1).all(), "sign(0) = +1"


@pytest.mark.parametrize("function", [alice.jvp, alice.virtual_step])
def test_nan_is_not_taken_for_a_zero_gradient(problem, function):
    score, unlabeled, labeled, label, margin = problem
    unlabeled = unlabeled.clone()
    unlabeled[0] = float("nan")
    inference = function(score, unlabeled, labeled, label, margin, learning_rate=0.1, weights="mean")
    assert inference.weight.isnan().any()


def test_dropped_tangent_is_an_error(problem):
    class SecondPassDetached(nn.Module):
        def __init__(self, score):
            super().__init__()
            self.score, self.passes = score, 0

        def forward(self, sample):
            self.passes += 1
            return self.score(sample) if self.passes == 1 else self.score(sample).detach()

    score, *rest = problem
    with pytest.raises(RuntimeError, match="tangent"):
        alice.jvp(SecondPassDetached(score), *rest, learning_rate=0.1)


def test_functional_weights_leave_the_module_alone(problem):
    score, *rest = problem
    before = {name: p.detach().clone() for name, p in score.named_parameters()}
    alice.virtual_step(score, *rest, learning_rate=0.5)
    alice.jvp(score, *rest, learning_rate=0.5)
    assert all(p.equal(before[name]) and p.grad is None for name, p in score.named_parameters())
    assert functional_call(score, before, (rest[0],)).shape == (N,)


class Shared(nn.Module):
    """A layer under two names, and another layer with the same weight."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again, self.other.weight = self.layer, self.layer.weight

    def forward(self, sample):
        return self.other(self.again(self.layer(sample).tanh()).tanh()).square().mean(1)


def test_a_shared_layer_and_a_shared_weight_are_one_weight():
    torch.manual_seed(0)
    score, label = Shared().double(), torch.tensor([1.0, -1.0] * (M // 2)).double()
    problem = score, torch.rand(N, 4).double(), torch.rand(M, 4).double(), label, 1.0
    weight = score.layer.weight
    inferences = [function(*problem, learning_rate=LEARNING_RATE) for function in (alice.jvp, alice.virtual_step)]
    assert score.layer.weight is score.again.weight is score.other.weight is weight, "the module is left alone"
    for inference in inferences:
        assert relative_difference(inference.d, reverse_passes(problem)[0]) <= 1e-9
    for one, other in zip(*inferences, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


class Stacked(nn.Module):
    """A network of stacked weights and buffers: maps samples (k, n, ...) to scores (k, n)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, sample):
        def one(theta, buffers, sample):
            return functional_call(self.model, (theta, buffers), (sample,))

        return vmap(one)(*alice.state(self.model), sample)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_stacked_models_make_the_steps_of_each(problem, statistics):
    score, unlabeled, labeled, label, margin = problem
    models = [copy.deepcopy(score) for _ in range(3)]
    for i, model in enumerate(models):
        for p in model.parameters():
            p.data *= 1 + i / 8
    margins = margin * torch.tensor([[1.0], [1.2], [0.9]]).double()
    unlabeled, labeled = (torch.stack([x, x.flip(0), x.square()]) for x in (unlabeled, labeled))
    theta, buffers = ({f"model.{name}": x for name, x in state.items()} for state in stack_module_state(models))
    stacked = Stacked(score)

    v, *of_labeled = alice.labeled_gradient(stacked, theta, buffers, labeled, label, margins, statistics)
    value, d = alice.derivative(stacked, theta, buffers, unlabeled, v)
    together = alice.infer(value, d, v, *of_labeled, learning_rate=LEARNING_RATE, weights="mean")
    (together.weight * together.score).mean(-1).sum().backward()
    for i, model in enumerate(models):
        options = {"learning_rate": LEARNING_RATE, "weights": "mean", "labeled_statistics": statistics}
        alone = alice.jvp(model, unlabeled[i], labeled[i], label, margins[i], **options)
        (alone.weight * alone.score).mean().backward()
        for one, all_ in zip(alone, together, strict=True):
            ours = {name: all_[f"model.{name}"][i] for name in one} if isinstance(one, dict) else all_[i]
            torch.testing.assert_close(ours, one, rtol=1e-9, atol=1e-14)
        for name, p in model.named_parameters():
            torch.testing.assert_close(theta[f"model.{name}"].grad[i], p.grad, rtol=1e-9, atol=1e-14)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[f"model.{name}"][i], buffer)


@pytest.mark.parametrize("function", [alice.jvp, alice.virtual_step])
def test_a_schedule_may_come_down_to_0(problem, function):
    score, *rest = problem
    inference = function(copy.deepcopy(score), *rest, learning_rate=0.0, weights="mean")
    torch.testing.assert_close(inference.d, infer(function, problem).d, rtol=1e-9, atol=1e-14)
    assert inference.meta_gradient.eq(0).all() and inference.weight.eq(0).all()


def test_a_contamination_is_the_share_of_pseudo_anomalies(problem):
    """Of 12 samples the 3 of the smallest d; α is the distance of d to the threshold."""
    for function in (alice.jvp, alice.virtual_step):
        found = infer(function, problem, weights="mean", contamination=0.25)
        threshold = found.d.quantile(0.25)
        assert found.pseudo_label.tolist() == torch.where(found.d < threshold, -1.0, 1.0).tolist()
        assert (found.pseudo_label < 0).sum() == 3
        distance = (found.d - threshold).abs()
        torch.testing.assert_close(found.weight, distance / distance.mean())
        dropped = infer(function, problem, weights="drop", contamination=0.25)
        assert dropped.weight.tolist() == (found.pseudo_label > 0).double().tolist()
        torch.testing.assert_close(found.meta_gradient, infer(function, problem).meta_gradient)
