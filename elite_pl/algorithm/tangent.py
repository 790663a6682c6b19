"""Faster rules for dual numbers: how values and tangents go through some functions. Torch only.

PyTorch has a rule for nearly every function, made for all cases. `FastTangents` has its own for three of them. Without
a bias or a scale, a convolution of few channels hardly costs more with twice as many, so value and tangent share one;
and the Jacobian of a normalization is symmetric, so that its fused backward kernel gives the tangent, too. Where a
constant is subtracted, PyTorch works out the shape of its zero tangent in Python, a third of a step of a small network.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]


class FastTangents(TorchFunctionMode):
    """Inside, dual numbers go through the functions in `RULES` by the rule there, wherever it applies.

    Values, tangents and gradients are those of PyTorch's rules up to rounding; tangents have no autograd graph.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls a function by its rule here, or as it is."""
        kwargs = kwargs or {}
        ours = func in RULES and args and not is_batchedtensor(args[0])  # under `vmap` nothing can be unpacked
        found = RULES[func](*args, **kwargs) if ours else None
        return func(*args, **kwargs) if found is None else forward_ad.make_dual(*found)


def conv2d(
    sample: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[Tensor, Tensor] | None:
    """`x * W` and its tangent `x * v + dx * W`; arguments as in `functional.conv2d`.

    Returns:
        Both, or None where the rule does not apply.
    """
    x, dx = forward_ad.unpack_dual(sample)
    w, v = forward_ad.unpack_dual(weight)
    if v is None or bias is not None or groups != 1 or isinstance(padding, str) or x.ndim != 4:
        return None
    value, tangent = _Convolution.apply(x, w, v, (stride, padding, dilation))
    if dx is not None:
        with torch.no_grad():
            tangent = tangent + functional.conv2d(dx, w, None, stride, padding, dilation)
    return value, tangent


class _Convolution(torch.autograd.Function):
    """`x * W`, with its backward, and `x * v`, as one convolution with `[W; v]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, v: Tensor, places: tuple[Any, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, w)
        ctx.places = places
        both = functional.conv2d(x, torch.cat([w, v]), None, *places)
        last = both.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        value, tangent = (half.contiguous(memory_format=layout) for half in both.chunk(2, dim=1))
        ctx.mark_non_differentiable(tangent)
        return value, tangent

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], False]
        of_x, of_w, _ = torch.ops.aten.convolution_backward(gradient, x, w, None, *ctx.places, False, (0, 0), 1, wanted)
        return of_x, of_w, None, None


def batch_norm(
    sample: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor] | None:
    """Normalized samples and their tangents; arguments as in `functional.batch_norm`.

    Returns:
        Both, or None where the rule does not apply.
    """
    x, dx = forward_ad.unpack_dual(sample)
    if dx is None or weight is not None or len(x) == 1:  # of which PyTorch refuses those that have no statistics
        return None
    running = running_mean, running_var
    value, mean, scale = torch.native_batch_norm(x, None, None, *running, training, momentum, eps)
    with torch.no_grad():
        tangent, *_ = torch.ops.aten.native_batch_norm_backward(
            dx, x, None, *running, mean, scale, training, eps, [True, False, False]
        )
    return value, tangent


def subtract(sample: Tensor, constant: Any, *, alpha: float = 1) -> tuple[Tensor, Tensor] | None:
    """A difference and its tangent, which is that of the sample; arguments as in `torch.Tensor.sub`.

    Returns:
        Both, or None where the rule does not apply.
    """
    x, dx = forward_ad.unpack_dual(sample)
    if dx is None or not isinstance(constant, Tensor) or forward_ad.unpack_dual(constant).tangent is not None:
        return None
    value = torch.sub(x, constant, alpha=alpha)
    return (value, dx) if value.shape == dx.shape else None


RULES: dict[Callable[..., Any], Callable[..., tuple[Tensor, Tensor] | None]] = {
    functional.conv2d: conv2d,
    functional.batch_norm: batch_norm,
    Tensor.sub: subtract,
}
