"""Tensors of other libraries, as those that lie on a GPU behave."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np


class Tensor:
    """A tensor of another library, which speaks DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **_: Any) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class DeviceTensor(Tensor):
    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("it is on another device")


class TorchTensor(DeviceTensor):
    """As torch's on another device, which needs a gradient besides."""

    is_cuda = False
    shape: tuple[int, ...] = ()

    def detach(self) -> TorchTensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self._array)


class CudaTensor(TorchTensor):
    """As torch's on a GPU; `pinned` are the buffers that were made for copies of it."""

    is_cuda = True
    pinned: ClassVar[list[PinnedTensor]] = []

    def new_empty(self, _shape: tuple[int, ...], *, device: str, pin_memory: bool) -> PinnedTensor:
        assert (device, pin_memory) == ("cpu", True)
        self.pinned.append(PinnedTensor(np.empty_like(self._array)))
        return self.pinned[-1]

    def cpu(self) -> Tensor:
        raise AssertionError("through memory that is not pinned")


class UnpinnedTensor(TorchTensor):
    """As torch's on a GPU of a process that can pin no more."""

    is_cuda = True

    def new_empty(self, *_: object, **__: object) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")


class PinnedTensor(Tensor):
    def copy_(self, source: CudaTensor) -> PinnedTensor:
        np.copyto(self._array, source._array)
        return self
