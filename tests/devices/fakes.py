"""Networks of fake tensors: torch's own rules of devices, for a GPU that need not be there, without computing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda", 0)


@contextmanager
def faking() -> Iterator[None]:
    """Make all tensors fakes, which are of a shape and of a device and hold nothing; real ones count as the CPU's."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def fake(tensor: Tensor) -> Tensor:
    """A fake on the GPU in place of a tensor."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


def on_fake_gpu(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, or a module, without gradients, on fakes in place of the tensors given to it.

    Returns:
        its fakes.
    """
    with faking(), torch.no_grad():
        if isinstance(function, nn.Module):
            for part in function.modules():
                for table in (part._parameters, part._buffers):
                    for name, tensor in table.items():
                        if tensor is not None:
                            made = fake(tensor)
                            table[name] = made if table is part._buffers else nn.Parameter(made, requires_grad=False)
        return function(*tree_map_only(Tensor, fake, args))


def devices_of(found: Any) -> set[str]:
    """The devices of all tensors in a nest of containers."""
    return {str(leaf.device) for leaf in tree_leaves(found) if isinstance(leaf, Tensor)}
