"""How often device and cloud agree on recorded answers, and what each gate would save and cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.recordings import Recording
from cloud_sim.sim.costs import DeviceCosts
from edge_runtime.schedules.gates import gate


def agreement(recordings: list[Recording]) -> dict[int, float]:
    """Share of positions whose token is among the cloud's best m."""
    ranks = []
    for recording in recordings:
        for token, payload in zip(recording.tokens, recording.payloads, strict=True):
            base = recording.codec.decode(payload)
            order = np.lexsort((base.ids, -base.logprobs))
            ranks.append(int(np.flatnonzero(base.ids[order] == token)[0]))
    return {m: float(np.mean(np.array(ranks) < m)) for m in (1, 2, 3, 4, 8, 16)}


def gates(recordings: list[Recording], costs: DeviceCosts) -> list[dict[str, Any]]:
    """What each gate saves on the way of the ungated answer, and how far it moves the policy."""
    rows = []
    for name in ("latch", "reopen"):
        gated, moved, spent, tokens = 0, 0.0, 0.0, 0
        changed = 0
        for recording in recordings:
            barrier, missed = gate(name), 0
            for at, payload in enumerate(recording.payloads):
                base = recording.codec.decode(payload)
                tokens += 1
                if barrier.steers(base):
                    catching_up = costs.chunk_ms_per_token * missed
                    spent += costs.step_ms + catching_up
                    missed = 0
                    continue
                gated, missed = gated + 1, missed + 1
                delta = recording.scores[at][0] - recording.scores[at][1]
                before = base.logprobs.astype(np.float64)
                before -= np.log(np.exp(before).sum())
                steered = before + recording.gain * delta
                steered -= steered.max() + np.log(np.exp(steered - steered.max()).sum())
                moved += float((np.exp(steered) * (steered - before)).sum())
                changed += base.best != recording.tokens[at]
        rows.append(
            {
                "gate": name,
                "gated": gated / tokens,
                "device_ms_saved": 1 - spent / (tokens * costs.step_ms),
                "kl_nats_per_token": moved / tokens,
                "tokens_changed": changed / tokens,
            }
        )
    return rows
