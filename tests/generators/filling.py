"""Weights by formula, the same for every implementation with the same names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A float64 tensor for every name and shape."""
    tensors = {}
    for i, name in enumerate(sorted(shapes)):
        shape = tuple(shapes[name])
        count = int(np.prod(shape))
        k = (
            (np.uint64(1000003 * i + 1) + np.arange(count, dtype=np.uint64))
            * np.uint64(2654435761)
            % np.uint64(1 << 32)
        )
        k ^= k >> np.uint64(15)
        k = k * np.uint64(2246822519) % np.uint64(1 << 32)
        k ^= k >> np.uint64(13)
        spread = 2 * (k / 2.0**32) - 1
        around_one = len(shape) == 1 and name.rpartition(".")[2] in ("weight", "gamma1", "gamma2")
        width = 0.2 if len(shape) == 1 else np.sqrt(3 * shape[0] / count)
        tensors[name] = torch.from_numpy(around_one + width * spread).reshape(shape)
    return tensors


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """`module` with these weights, its own dtype kept."""
    module.load_state_dict(filled({name: tuple(t.shape) for name, t in module.state_dict().items()}))
    return module


def waves(*factors: float, size: tuple[int, ...], amplitude: float = 1.0) -> torch.Tensor:
    """amplitude · sin(Σ factor_d · index_d) over a grid of `size`, float64."""
    grids = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    return amplitude * torch.sin(sum(factor * grid for factor, grid in zip(factors, grids, strict=True)))
