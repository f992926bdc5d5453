"""Files that are there whole, or not at all, and for whom."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.files import write_whole


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("private", "mode"), [(False, 0o640), (True, 0o600)])
def test_who_may_read_it(tmp_path: Path, private: bool, mode: int) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, "first")
    write_whole(path, b"second", private=private)
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "whole")
    with pytest.raises(TypeError):
        write_whole(path, ["not bytes"])  # type: ignore[arg-type]
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_name_is_refused_by_the_system_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        write_whole(tmp_path / ("n" * 255), "x")
    assert not list(tmp_path.iterdir())
