"""Read a GGUF file's header once, and quickly; and say what is wrong with one.

transformers parses the whole header anew for the configuration, the tokenizer and the weights
(four times in all), each time through a memory map whose every slice is an object of its own, and
rebuilds one table of tensor names for every submodule. For a 135M model on two cores that was 40 s
of 45. `read_once` lends it a reader that remembers. The package `gguf` is imported only here and
only then, so the device needs none of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNREADABLE: tuple[type[Exception], ...] = (
    OSError, ValueError, LookupError, ArithmeticError, RuntimeError, TypeError, AttributeError,
    AssertionError,
)  # fmt: skip
"""What transformers and gguf raise at a damaged file; none of them checks what it reads."""


def what_is_wrong(error: Exception) -> str:
    """One of `UNREADABLE` in words, on one line and without a full stop."""
    if isinstance(error, IndexError):  # gguf reads on behind the end
        return "the file is damaged or cut off"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """While this is open, `gguf.GGUFReader` and its name table are remembered by argument."""
    import gguf

    plain_reader, plain_map = gguf.GGUFReader, gguf.get_tensor_name_map

    class Reader(plain_reader):  # type: ignore[misc, valid-type]
        """Slices the map as a plain array: the same bytes without a memmap object for each."""

        data: Any
        _whole: Any = None

        def _get(self, offset: int, *arguments: Any, **named: Any) -> Any:
            if self._whole is None:
                import numpy as np

                self._whole = self.data.view(np.ndarray)
            mapped, self.data = self.data, self._whole
            try:
                return super()._get(offset, *arguments, **named)
            finally:
                self.data = mapped

    @functools.cache
    def reader(path: str) -> Any:
        return Reader(path)

    def remembered(path: Any, mode: str = "r") -> Any:
        return reader(str(Path(path))) if mode == "r" else plain_reader(path, mode)

    gguf.GGUFReader = remembered
    gguf.get_tensor_name_map = functools.cache(plain_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = plain_reader, plain_map
