"""The fast rules against those of PyTorch's dual numbers."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

from elite_pl.algorithm import tangent

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def through(layer, sample, of_sample, of_weight):
    """Value, tangent, gradients and buffers of a layer; None for a tangent that is not there."""
    x = sample.clone(memory_format=torch.preserve_format).requires_grad_()
    with forward_ad.dual_level():
        weight = {name: forward_ad.make_dual(p, of_weight[name]) for name, p in layer.named_parameters()}
        dual = x if of_sample is None else forward_ad.make_dual(x, of_sample)
        value, derivative = forward_ad.unpack_dual(torch.func.functional_call(layer, weight, (dual,)))
    gradients = torch.autograd.grad(value.sin().sum(), [x, *layer.parameters()])
    return value, derivative.detach(), *gradients, *(buffer.clone() for buffer in layer.buffers())


def compare(make, sample, of_sample, applies, monkeypatch):
    layers = [make().double().to(memory_format=torch.channels_last) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    of_weight = {name: torch.randn_like(p) for name, p in layers[0].named_parameters()}
    found = []
    for name in ("conv2d", "batch_norm"):
        rule, function = getattr(tangent, name), getattr(functional, name)
        note = lambda *args, rule=rule, **kwargs: (found.append(rule(*args, **kwargs)), found[-1])[1]  # noqa: E731
        monkeypatch.setitem(tangent.RULES, function, note)
    with tangent.FastTangents():
        ours = through(layers[0], sample, of_sample, of_weight)
    assert [pair is not None for pair in found] == [applies]
    for one, other in zip(ours, through(layers[1], sample, of_sample, of_weight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("options", "applies"),
    [
        ({"padding": 2}, True),
        ({"stride": 2, "dilation": (1, 2)}, True),
        ({"padding": "same"}, False),
        ({"groups": 2}, False),
        ({"bias": True}, False),
    ],
)
def test_convolution(options, applies, layout, first, monkeypatch):
    """The first layer's samples have no tangent."""
    sample, of_sample = (torch.randn(5, 4, 9, 7).double().to(memory_format=layout) for _ in range(2))
    make = lambda: nn.Conv2d(4, 6, 3, **{"bias": False, **options})  # noqa: E731
    compare(make, sample, None if first else of_sample, applies, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("options", "training", "applies"),
    [
        ({"affine": False}, True, True),
        ({"affine": False}, False, True),
        ({"affine": False, "track_running_stats": False}, True, True),
        ({"affine": True}, True, False),
    ],
)
def test_batch_normalization(options, training, applies, layout, monkeypatch):
    sample, of_sample = (torch.randn(5, 4, 6, 7).double().to(memory_format=layout) for _ in range(2))
    compare(lambda: nn.BatchNorm2d(4, **options).train(training), sample, of_sample, applies, monkeypatch)


@pytest.mark.parametrize(
    ("constant", "applies"),
    [(torch.randn(7, 4), True), (torch.randn(4), True), (torch.randn(2, 7, 4), False), (0.5, False), (None, False)],
)
def test_difference(constant, applies):
    """None stands for another dual number; what is broadcast to the constant has a larger tangent."""
    x, dx = torch.randn(2, 7, 4).double()
    x.requires_grad_()

    def through():
        with forward_ad.dual_level():
            sample = forward_ad.make_dual(x, dx)
            other = sample * 2 if constant is None else constant
            assert (tangent.subtract(sample, other) is not None) == applies
            value, derivative = forward_ad.unpack_dual(sample - other)
        return value, derivative, *torch.autograd.grad(value.sin().sum(), [x])

    expected = through()
    with tangent.FastTangents():
        found = through()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_a_batch_without_statistics_is_refused_as_ever():
    with forward_ad.dual_level(), tangent.FastTangents(), pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm1d(3, affine=False)(forward_ad.make_dual(torch.ones(1, 3), torch.ones(1, 3)))
