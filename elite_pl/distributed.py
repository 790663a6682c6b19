"""One batch over several processes that give the answer of one. In a single process everything here is the identity.

Each process scores its own shard of the unlabeled batch, and the whole labeled batch. `gather` hands all scores to all
processes, so that each computes the loss of the whole batch by the formula that one process would use: its n, its
means, its ranking. The gradient of that loss reaches the weights through the process's own scores only, which `gather`
therefore counts once for each process: the mean over the processes is then the gradient of one process, for what each
has a shard of as well as for what each has whole (labeled samples, penalties of the weights).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed


def processes() -> int:
    """Returns the number of processes that train together; 1 outside of a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


def shard(n: int) -> slice:
    """This process's shard of a batch of n samples; the shards differ by one sample at most.

    A batch that has not two samples for each process, which batch statistics need, goes to every process as a whole.
    """
    count = processes()
    if n < 2 * count:
        return slice(0, n)
    return slice(rank() * n // count, (rank() + 1) * n // count)


def gather(own: Tensor, n: int) -> Tensor:
    """Joins the values of all shards.

    Args:
        own: Values of each sample of this process's shard, shape (..., n_r); several at once cost one message.
        n: The size of the whole batch.

    Returns:
        The values of the whole batch, shape (..., n). The gradient of this process's own values is counted once for
        each process; that of the others' values ends here.
    """
    return own if own.shape[-1] == n else _Gather.apply(own, n)


class _Gather(torch.autograd.Function):
    """See `gather`."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int) -> Tensor:
        """Adds up tensors that are 0 outside of each process's shard, because gloo gathers equal shapes only."""
        whole = own.new_zeros(*own.shape[:-1], n)
        whole[..., shard(n)] = own
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of this process's shard, to be averaged over all of them."""
        (gradient,) = gradients
        return gradient[..., shard(gradient.shape[-1])] * processes(), None


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors, in place, by their means over the processes; one message for all of them."""
    tensors = list(tensors)
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= processes()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors, in place, by those of the first process."""
    if processes() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def leave_group() -> None:
    """Ends the process group; each process goes on alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def all_gather_objects(value: Any) -> list[Any]:
    """Gathers a picklable value of each process, in the order of ranks."""
    values = [value] * processes()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values
