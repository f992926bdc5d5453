"""The quick GGUF reader reads what the plain one reads, once, and leaves the package as it was."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edge_runtime.gguf_reading import read_once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "", "dé"])
    writer.add_tensor("weights", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def content(reader: gguf.GGUFReader) -> tuple[dict[str, object], list[np.ndarray]]:
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, [np.array(tensor.data) for tensor in reader.tensors]


def test_it_reads_what_the_plain_reader_reads(path: Path) -> None:
    fields, tensors = content(gguf.GGUFReader(path))
    with read_once():
        quick_fields, quick_tensors = content(gguf.GGUFReader(path))
    assert quick_fields == fields
    assert fields["tokenizer.ggml.tokens"] == ["a", "bc", "", "dé"]
    np.testing.assert_array_equal(quick_tensors[0], tensors[0])


def test_a_file_is_read_once_and_the_package_is_left_as_it_was(path: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with read_once():
        assert gguf.GGUFReader(path) is gguf.GGUFReader(str(path))
        one = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is one
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
