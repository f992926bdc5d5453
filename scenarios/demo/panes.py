"""The demo on the terminal: two panes that fill token by token, then the table under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from scenarios.pages import timeline


class Panes:
    """Answers side by side; `push` shows one more piece of one of them."""

    def __init__(self, console: Console, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._texts = [Text() for _ in labels]
        self._at: int | None = None
        self._live = Live(self._render(), console=console, refresh_per_second=20)

    def __enter__(self) -> Panes:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._at = None
        self._live.update(self._render(), refresh=True)
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.line()  # on a terminal, rich ends the line itself

    def push(self, pane: int, piece: str) -> None:
        """Add `piece` to the pane's answer."""
        self._at = pane
        self._texts[pane].append(piece)
        self._live.update(self._render())

    def replace(self, pane: int, tokens: Sequence[Mapping[str, Any]]) -> None:
        """The finished answer, with the tokens that steering changed in bold."""
        self._texts[pane] = steered_text(tokens)
        self._at = None
        self._live.update(self._render())

    def _render(self) -> RenderableType:
        table = Table.grid(expand=True, padding=(0, 1))
        for _ in self._labels:
            table.add_column(ratio=1)
        table.add_row(
            *(
                Panel(
                    Group(text + Text("▌" if self._at == pane else "")),
                    title=label,
                    title_align="left",
                    border_style="bright_yellow" if self._at == pane else "dim",
                )
                for pane, (label, text) in enumerate(zip(self._labels, self._texts, strict=True))
            )
        )
        return table


def steered_text(tokens: Sequence[Mapping[str, Any]]) -> Text:
    """An answer whose changed tokens stand out."""
    text = Text()
    for token in tokens:
        text.append(token["text"], style="bold bright_yellow" if token["instead"] else "")
    return text


def figures(answers: Sequence[Mapping[str, Any]]) -> Table:
    """What each answer cost."""
    table = Table(title="Measured on this machine", title_justify="left", title_style="bold")
    table.add_column("")
    for answer in answers:
        table.add_column(answer["label"], justify="right")

    def add(name: str, values: Sequence[str], style: str = "") -> None:
        table.add_row(name, *values, style=style)

    rows = [answer["row"] for answer in answers]
    add("tokens per second", [f"{row['tokens_per_s']:.1f}" for row in rows], "bold")
    add("time per token, ms", [f"{row['ms_per_token']['total']:.1f}" for row in rows])
    for part, (_, label) in timeline.PARTS.items():
        spent = [row["ms_per_token"].get(part, 0.0) for row in rows]
        if max(spent) >= 0.005:
            add(f"  {label}", [f"{ms:.2f}" for ms in spent], "dim")
    counts = [max(1, len(answer["tokens"])) for answer in answers]
    for name, key in (
        ("bytes up per token", "uplink_bytes"),
        ("bytes down per token", "downlink_bytes"),
    ):
        add(name, [f"{row[key] / n:.0f}" for row, n in zip(rows, counts, strict=True)])
    add("peak memory of the device, MB", [f"{row['peak_rss_mb']:.0f}" for row in rows])
    return table


def links(runs: Sequence[Mapping[str, Any]]) -> Table:
    """The simulated runs, one line a link."""
    table = Table(title="The same answer, simulated", title_justify="left", title_style="bold")
    for name in ("link", "first token, ms", "per token p50", "p95", "tokens/s", "same tokens"):
        table.add_column(name, justify="left" if name == "link" else "right")
    for run in runs:
        row = run["row"]
        table.add_row(
            run["label"],
            f"{row['ttft_ms']:.0f}",
            f"{row['token_ms_p50']:.1f}",
            f"{row['token_ms_p95']:.1f}",
            f"{row['tokens_per_s']:.1f}",
            "yes" if run["same"] else "no",
        )
    return table
