"""A GPU that does not exist: tensors that say "cuda" and compute on the CPU.

`pretended_gpu` lets code run as on a machine with one GPU, with real values, so that functions whose output depends on
the data run as well. As on a GPU an operation on tensors of both devices is an error, unless one is a number
or an index, and no tensor of the GPU becomes an array of numpy. `kind = "meta"` gives the tensors another name of a
device: autograd wants a CUDA context for the first, and none for this one.

Not seen: kernels, streams, precision, memory; what code asks of `torch.cuda` beyond "is there one, how many".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {  # a GPU takes the indices of the CPU, too
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._unsafe_index.Tensor,
    _aten._index_put_impl_.default,
}


def _batch_norm(
    values: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    return (*torch.native_batch_norm(values, weight, bias, mean, var, training, momentum, eps), values.new_empty(0))


_OF_GPUS_ALONE = {_aten.cudnn_batch_norm.default: _batch_norm}


class DeviceMismatchError(RuntimeError):
    """An operation on tensors of both devices."""


class PretendedTensor(Tensor):
    """A tensor of the CPU, `inner`, that says it lies elsewhere."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> PretendedTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"PretendedTensor({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value)

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = next(leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PretendedTensor))
        return _run(place, function, args, kwargs or {})


def _index(index: Any) -> Any:
    """An index whose lists and arrays are tensors: torch would move them to a real GPU."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.as_tensor(index) if isinstance(index, list | np.ndarray) else index


class _Placement(TorchDispatchMode):
    """Makes tensors of the pretended device where one is asked for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.place = device

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(self.place, function, args, kwargs or {})


def _run(place: torch.device, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, PretendedTensor) for tensor in tensors)
    if there and function not in _COPIES:
        _refuse_mixed(function, args, tensors)
    asked = kwargs.get("device")
    if asked is not None:
        there = torch.device(asked).type == place.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif function is _aten.copy_.default:
        there = isinstance(args[0], PretendedTensor)
    args, kwargs = tree_map_only(PretendedTensor, lambda tensor: tensor.inner, (args, kwargs))
    with unset_fake_temporarily():
        found = _OF_GPUS_ALONE.get(function, function)(*args, **kwargs)
    return tree_map_only(Tensor, lambda tensor: PretendedTensor(tensor, place), found) if there else found


def _refuse_mixed(function: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    indices = tree_leaves(args[1]) if function in _INDEXED and isinstance(args[0], PretendedTensor) else []
    for tensor in tensors:
        if not isinstance(tensor, PretendedTensor) and tensor.ndim and not any(tensor is index for index in indices):
            raise DeviceMismatchError(f"{function} of tensors on the CPU and on the GPU")


class _Fakes(FakeTensorMode):
    avoid_device_init = True  # also of a machine that says it has a GPU


@contextmanager
def _placed(device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        if device.type == "cuda":  # torch asks for no driver while fake tensors are made
            stack.enter_context(_Fakes())
        stack.enter_context(_Placement(device))
        yield


def _enter_no_grad(mode: torch.inference_mode) -> None:
    mode._inference_mode_context = torch.set_grad_enabled(torch.is_grad_enabled() and not mode.mode)
    mode._inference_mode_context.__enter__()


@contextmanager
def pretended_gpu(kind: str = "cuda") -> Iterator[torch.device]:
    """Yield the device of a machine that says it has one GPU, in this thread and in those that it starts."""
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    run, converted = threading.Thread.run, torch.__future__.get_overwrite_module_params_on_conversion()

    def run_placed(thread: threading.Thread) -> None:
        with _placed(device):
            run(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "run", run_placed)
        patch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(torch.inference_mode, "__enter__", _enter_no_grad)  # its tensors cannot be wrapped
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `to` makes new parameters
        try:
            with _placed(device):
                yield device
        finally:
            patch.setattr(torch.inference_mode, "__enter__", _enter_no_grad)  # its tensors cannot be wrapped
        torch.__future__.set_overwrite_module_params_on_conversion(converted)


def on_both(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Call a function with its tensors on the CPU, then with all of them on the pretended GPU.

    Returns:
        both results, those of the GPU copied back.
    """
    here = function(*args, **kwargs)
    with pretended_gpu() as device:
        moved, named = tree_map_only(Tensor, lambda tensor: tensor.to(device), (args, kwargs))
        there = function(*moved, **named)
        there = tree_map_only(Tensor, lambda tensor: tensor.cpu(), there)
    return here, there
