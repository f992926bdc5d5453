"""How `costeer generate` shows an answer: as it comes, and its figures at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from edge_runtime.text import Text
    from edge_runtime.transcript import TokenRecord


class Stream:
    """Prints an answer as it comes."""

    def __init__(self, text: Text, to: TextIO, shown: bool) -> None:
        # Where the shell closed it there is no output at all.
        self._decoder, self._to, self._shown = text.stream(), to, shown and to is not None
        self._began = False

    def __call__(self, record: TokenRecord) -> None:
        """The text that the token completes."""
        self._write(self._decoder.push(record.token))

    def end(self) -> None:
        """The rest, and a line end if there was anything."""
        self._write(self._decoder.flush())
        if self._began:
            self._write("\n")

    def _write(self, text: str) -> None:
        if self._shown and text:
            self._began = True
            self._to.write(text)
            self._to.flush()


def _speed(row: dict[str, Any]) -> str:
    first = f"first after {row['ttft_ms']:.0f} ms"
    # One token has no time after the first.
    return f"{row['tokens_per_s']:.1f} tokens/s, {first}" if row["tokens_per_s"] > 0 else first


def table(row: dict[str, Any]) -> None:
    """The figures of an answer, for a person."""
    from rich.console import Console
    from rich.table import Table

    tokens = max(1, len(row["tokens"]))
    parts = row["ms_per_token"]
    spent = ", ".join(f"{k} {v:.1f}" for k, v in parts.items() if k != "total" and v >= 0.05)
    grid = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("method", f"{row['method']}, gain {row['gain']:.4g}, {row['schedule']}"),
        ("tokens", f"{len(row['tokens'])} ({row['finish']})"),
        ("speed", _speed(row)),
        ("a token", f"{parts['total']:.1f} ms: {spent}"),
        (
            "bytes a token",
            f"{row['uplink_bytes'] / tokens:.0f} up, {row['downlink_bytes'] / tokens:.0f} down",
        ),
        ("memory", f"{row['peak_rss_mb']:.0f} MB at the most"),
    ):
        grid.add_row(f"[dim]{name}[/dim]", value)
    for line in row["notes"]:
        grid.add_row("[dim]note[/dim]", line)
    Console().print(grid)
