"""Separate streams of random numbers from one seed, so that changing one draw leaves the others alone."""

import hashlib

import torch


def derive(seed: int, *purpose: object) -> int:
    """Derives a seed for one purpose.

    Args:
        seed: The run's seed.
        purpose: The use of the numbers, such as `"batches", epoch`.

    Returns:
        A non-negative 63-bit integer, the same on every machine and in every process.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose; see `derive`."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
