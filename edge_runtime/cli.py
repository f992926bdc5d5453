"""`costeer generate`: answer a query, steered by a private note that stays here."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edge_runtime.cli_files import private_notes, secret
from edge_runtime.cli_show import Stream, table
from edge_runtime.errors import CosteerError, UsageError

if TYPE_CHECKING:
    from edge_runtime.assembly import Plan, Stranger
    from edge_runtime.budget import Budget
    from edge_runtime.connections.openai import Language
    from edge_runtime.text import Text
    from edge_runtime.transcript import Transcript

Align = Literal["none", "map", "byte"]
MOST_PADDING = 1 << 20
"""Bytes. A frame is some tens of them, and no server takes one of a megabyte."""

COUNTED: dict[str, float | None] = {
    "divergences": 0,
    "accepted": 0,
    "gated": 0,
    "late": 0,
    "wasted_cloud_tokens": None,
}
"""What every answer says in JSON; the last is null where no cloud gave an account of itself, all of
them where the answer broke off."""


def generate(
    bundle: Annotated[Path, typer.Argument(help="Folder made by costeer export.")],
    query: Annotated[str, typer.Argument(help="The question; the cloud sees it.")],
    cloud: Annotated[
        str, typer.Option(help="ws://HOST:PORT of costeer serve, or openai:http://HOST/v1#MODEL.")
    ] = "",
    context: Annotated[
        list[Path] | None,
        typer.Option(
            help="File with the private note; it stays here. Several: each its own delta."
        ),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Of each note, in their order; 1 if not given.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="names, light, costeer, blend, cloud-only, device-only, ...; NAME:FIELD=VALUE for"
            " another number of one."
        ),
    ] = "names",
    gain: Annotated[float | None, typer.Option(help="Instead of the method's own.")] = None,
    codec: Annotated[
        str, typer.Option(help="Candidates sent: topk:K, packed:K, nucleus:P, full or full8.")
    ] = "topk:64",
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among this much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the server's bearer token.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="How device and cloud take turns.")] = "lockstep",
    window: Annotated[int, typer.Option(help="runahead: how far; 0: adapts.")] = 0,
    branches: Annotated[int, typer.Option(help="runahead: continuations at once.")] = 0,
    draft_tokens: Annotated[int, typer.Option(help="draft: tokens at a time; 0: adapts.")] = 0,
    gate: Annotated[str, typer.Option(help="none, latch or reopen.")] = "none",
    token_deadline_ms: Annotated[
        float, typer.Option(help="When a token is late (with --on-late).")
    ] = 0.0,
    on_late: Annotated[str, typer.Option(help="Then: wait, device or cloud.")] = "wait",
    align: Annotated[
        Align, typer.Option(help="Where the cloud has another tokenizer: map or byte.")
    ] = "none",
    cloud_tokenizer: Annotated[
        Path | None, typer.Option(help="Then: the cloud's tokenizer.json.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="For the small model.")] = 1,
    memory_mb: Annotated[float | None, typer.Option(help="Budget: resident memory.")] = None,
    first_token_ms: Annotated[float | None, typer.Option(help="Budget: prefill.")] = None,
    token_ms: Annotated[float | None, typer.Option(help="Budget: the device's work.")] = None,
    last_resort: Annotated[
        str, typer.Option(help="Over it, who may answer alone: cloud, device, both or none.")
    ] = "cloud",
    pad_to: Annotated[
        int, typer.Option(min=0, max=MOST_PADDING, help="Pad uplink frames to this.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Use a bundle that failed its verification.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a query with a big cloud model, steered by a private note that stays here."""
    from edge_runtime.assembly import Plan, device_for, public_query
    from edge_runtime.bundle import open_bundle
    from edge_runtime.candidates import codec as codec_named
    from edge_runtime.connections.local import run_local
    from edge_runtime.graphs.memory import peak_rss_mb
    from edge_runtime.ledger import ledger
    from edge_runtime.rules import method as method_named
    from edge_runtime.sampling import Sampler
    from edge_runtime.schedules.alone import alone
    from edge_runtime.schedules.exchange import Request
    from edge_runtime.text import Text
    from edge_runtime.transcript import Transcript, finite

    _check_text(query)
    rule = method_named(method, gain)
    sampler = Sampler(temperature, top_p, seed)
    plan = Plan(
        schedule,
        window=window,
        branches=branches,
        draft_tokens=draft_tokens,
        gate=gate,
        token_deadline_ms=token_deadline_ms,
        on_late=on_late,  # type: ignore[arg-type]  # Deadline checks it
    )
    budget = _budget(memory_mb, first_token_ms, token_ms)
    plan = plan.within(budget, last_resort)  # type: ignore[arg-type]  # device_for checks it
    plan.check()
    notes, weights = private_notes(rule, context or [], weight or [])
    note = "\n\n".join(notes)
    stranger = _stranger(align, cloud_tokenizer)
    opened = open_bundle(bundle, force=force)
    text = Text.open(opened)
    asked = public_query(rule, query, note)
    spoken = stranger.text if stranger else text
    vocabulary = spoken.fingerprint if stranger else opened.manifest.vocabulary_sha256
    request = Request(asked, vocabulary, codec_named(codec), max_tokens)
    device = device_for(
        opened,
        text,
        query,
        note,
        rule,
        max_tokens=max_tokens,
        sampler=sampler,
        threads=threads,
        budget=budget,
        last_resort=last_resort,  # type: ignore[arg-type]
        notes=notes,
        weights=weights,
        stranger=stranger,
    )
    show = Stream(spoken, sys.stderr if as_json else sys.stdout, not as_json or sys.stderr.isatty())
    if rule.base == "informed-cloud" and note:
        print("generate: --method upload sends the private note to the cloud.", file=sys.stderr)
    if rule.asks_cloud:
        if not cloud:
            raise UsageError(
                "generate", f"the method {rule.name} asks a cloud", todo="Name one with --cloud"
            )
        size = opened.manifest.architecture.vocabulary_size
        if stranger:
            size = spoken.tokenizer.get_vocab_size()
        language = partial(_language, spoken, asked, device.end_ids, size)
        ask = _asker(cloud, secret(token_file), pad_to, plan, language)
    transcript = Transcript(rule.name, rule.gain, "", "")
    counted = COUNTED
    failure: CosteerError | None = None
    try:
        if rule.asks_cloud:
            asyncio.run(ask(plan.make(device, request), on_token=show, into=transcript))
        else:
            size = opened.manifest.architecture.vocabulary_size
            run_local(alone(device, size, max_tokens), on_token=show, into=transcript)
    except CosteerError as broken:
        if not transcript.records:
            raise
        transcript.finish, failure, counted = "failed", broken, dict.fromkeys(COUNTED)
        transcript.notes.append(str(broken))
        if plan.schedule in ("draft", "auto"):
            transcript.notes.append("drafts that were not kept are missing in the ledger")
    finally:
        show.end()
    transcript.notes += device.decisions
    if plan.on_late == "device":
        from edge_runtime.governor import alone_spans

        transcript.notes += alone_spans(transcript.records)
    answer = spoken.decode(transcript.tokens)
    row = {"text": answer, **counted, **transcript.row(), "peak_rss_mb": peak_rss_mb()}
    row["ledger"] = ledger(transcript, rule, sampler).row()
    if as_json:
        print(json.dumps(finite(row), allow_nan=False))
    else:
        table(row)
    if failure is not None:
        raise failure


def _check_text(query: str) -> None:
    try:
        query.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes of another encoding, as Python carries them
        raise UsageError("QUERY", "the question is no UTF-8 text", got=ascii(query)) from error


def _asker(
    cloud: str, key: str | None, pad_to: int, plan: Plan, language: Callable[[], Language]
) -> Callable[..., Coroutine[Any, Any, Transcript]]:
    """How to ask `cloud`: called with a schedule, and with who looks on."""
    if not cloud.startswith("openai:"):
        from edge_runtime.connections import websocket

        return partial(websocket.answer, url=cloud, token=key, pad_to=pad_to)

    from edge_runtime.connections import openai

    if plan.schedule in ("draft", "auto"):
        raise UsageError(
            "--schedule",
            "a completions server cannot score drafts",
            got=plan.schedule,
            allowed="runahead, lockstep",
        )
    if pad_to:
        raise UsageError("--pad-to", "frames can be padded to costeer serve only", got=pad_to)
    return partial(openai.answer, url=cloud, language=language(), key=key)


def _language(text: Text, query: str, end_ids: Iterable[int], size: int) -> Language:
    """The prompt and the vocabulary, for a server that knows only tokens."""
    from edge_runtime.connections.openai import Language

    known: dict[str, int] = {}

    def find(piece: str) -> int | None:
        if not known:
            for index in reversed(range(text.tokenizer.get_vocab_size())):
                known[text.decode([index], skip_special=False)] = index
        return known.get(piece)

    return Language(text.prompts(query).agnostic, find, tuple(sorted(end_ids)), size)


def _stranger(align: Align, tokenizer: Path | None) -> Stranger | None:
    from edge_runtime.assembly import Stranger

    if (align == "none") != (tokenizer is None):
        raise UsageError("generate", "--align and --cloud-tokenizer go together")
    return Stranger.open(tokenizer, align) if tokenizer and align != "none" else None


def _budget(
    memory_mb: float | None, first_token_ms: float | None, token_ms: float | None
) -> Budget | None:
    from edge_runtime.budget import Budget

    budget = Budget(memory_mb, first_token_ms, token_ms)
    return None if budget == Budget() else budget
