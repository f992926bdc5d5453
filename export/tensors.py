"""The one file that holds every tensor of a bundle, and the references that graphs keep to it.

Large tensors begin on a page, small ones on a cache line, so that onnxruntime maps the file instead
of reading it, and a tensor that two graphs share is stored, and paged in, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import WEIGHTS

PAGE_BYTES, LINE_BYTES = 4096, 64
LARGE_BYTES = 1 << 16
INLINE_BYTES = 1024
"""Tensors up to this size stay inside the graph file."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A weight that is read (and converted to float32) only when `load` is called."""

    shape: tuple[int, ...]
    load: Callable[[], Array]

    @classmethod
    def of(cls, array: Array) -> LazyTensor:
        """One that is there already."""
        return cls(tuple(array.shape), lambda: array)


class TensorFile:
    """Appends tensors to `weights.bin` in the bundle's folder, in the order they are added."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / WEIGHTS
        self._protos: dict[str, Any] = {}
        self.size_bytes = 0

    def __enter__(self) -> TensorFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, array: Array) -> str:
        """Write `array` under `name` (once) and return the name."""
        from onnx import TensorProto, helper, numpy_helper

        if name in self._protos:
            return name
        array = np.asarray(array, order="C")  # ascontiguousarray would make a scalar 1-D
        if array.nbytes <= INLINE_BYTES:
            self._protos[name] = numpy_helper.from_array(array, name)
            return name
        padding = -self.size_bytes % (PAGE_BYTES if array.nbytes >= LARGE_BYTES else LINE_BYTES)
        self._file.write(b"\0" * padding)
        offset = self.size_bytes + padding
        array.tofile(self._file)
        self.size_bytes = offset + array.nbytes
        proto = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", array.nbytes)):
            proto.external_data.add(key=key, value=str(value))
        self._protos[name] = proto
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._protos

    def proto(self, name: str) -> Any:
        """The TensorProto that refers to tensor `name`."""
        return self._protos[name]
