"""All rows of a study as a table: what varies first, what never does said once."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scenarios.figures.arms import column, none, shown

if TYPE_CHECKING:
    import pandas as pd

SETTINGS = (
    *("case", "method", "gain", "bundle", "codec", "schedule", "profile", "rtt_ms"),
    *("device_profile", "cloud_profile", "devices", "seed"),
)
FIGURES = (
    *("ttft_ms", "ttft_ms_p50", "token_ms_p50", "token_ms_p95", "tokens_per_s"),
    *("uplink_bytes", "downlink_bytes", "rows_per_pass", "gpu_busy"),
    *("nll", "cloud_nll", "upload_nll"),
)
MOST_ROWS = 400


def row_table(rows: pd.DataFrame, varied: Sequence[str]) -> str:
    """`rows` as HTML: the axes `varied`, other settings that differ, and figures. Settings that are
    the same everywhere stand above it in one line; rows beyond `MOST_ROWS` in the Parquet file."""
    axes = [name for name in dict.fromkeys(map(column, varied)) if name in rows]
    settings = [name for name in SETTINGS if name in rows and name not in axes]
    differ = [name for name in settings if rows[name].nunique(dropna=False) > 1]
    figures = [name for name in FIGURES if name in rows and rows[name].notna().any()]
    columns = [*axes, *differ, *figures]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in record) + "</tr>"
        for record in rows[columns].head(MOST_ROWS).itertuples(index=False)
    )
    rest = len(rows) - MOST_ROWS
    more = f'<p class="small">{rest} more rows: results.parquet.</p>' if rest > 0 else ""
    table = f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>{more}'
    return _everywhere(rows, [name for name in settings if name not in differ]) + table


def _everywhere(rows: pd.DataFrame, names: Sequence[str]) -> str:
    values = [(name, rows[name].iloc[0]) for name in names if len(rows)]
    # A lone case has no name of its own.
    told = [f"{n} {shown(v)}" for n, v in values if not none(v) and (n, v) != ("case", "case")]
    return f'<p class="small">In every row: {html.escape("; ".join(told))}.</p>' if told else ""


def _cell(value: object) -> str:
    if none(value):
        return "–"
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
