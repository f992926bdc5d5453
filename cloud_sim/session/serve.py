"""One session: admit, then answer in the mode the device asked for, until it closes.

A device may send `Open` again on the same connection to go on in another mode; it finds its cache
as it left it. One whose connection broke finds it on the shelf, or has it built anew from the
emitted tokens: the same answer either way.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from typing import Any

from cloud_sim.model import CloudModel, Logprobs
from cloud_sim.session.admission import STANDARD, Limits, Refuse, admit, out_of_turn
from cloud_sim.session.cache import Cache, Shelf
from cloud_sim.session.mailbox import Mailbox
from cloud_sim.session.stream import stream
from cloud_sim.session.talk import Mode, Talk
from edge_runtime import wire
from edge_runtime.candidates import Codec
from edge_runtime.candidates import codec as codec_called
from edge_runtime.schedules.actions import Action, Compute, Load, Send, Session


def session(
    model: CloudModel,
    limits: Limits = STANDARD,
    new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    shelf: Shelf | None = None,
    codecs: Callable[[str], Codec] | None = None,
) -> Session:
    """Serve one answer from `Open` to `Close`. Ends by returning; a bad request ends in a
    `Refusal` frame. The driver closes the generator when the device vanishes: its cache then goes
    to the `shelf`, if there is one. `codecs` makes the codec that a device names; None:
    the model's own `codec_called`, where it has one (a tape), or the wire's."""
    own: Callable[[str], Codec] = getattr(model, "codec_called", codec_called)
    named = codecs or own
    cache: Cache | None = Cache.empty(model)
    mail = Mailbox()
    name = ""
    try:
        opening = yield from mail.next()
        began, scored = None, 0
        while not isinstance(opening, wire.Close):
            if not isinstance(opening, wire.Open):
                raise out_of_turn(opening, "open")
            prompt, codec = admit(model, opening, limits, named)
            if opening.session and not name and shelf is not None:
                kept = shelf.take(opening.session)
                if kept is not None and cache is not None:
                    cache.close()
                    cache = kept
            name = name or opening.session or new_id()
            began = len(opening.emitted) if began is None else began
            yield Send(_opened(model, name, prompt))
            mail.epoch = opening.epoch
            assert cache is not None
            answer = list(opening.emitted)
            talk = Talk(model, limits, opening, codec, prompt, cache, mail, answer, scored)
            try:
                opening = yield from _MODES[opening.mode](talk)
            finally:
                cache, scored = talk.cache, talk.scored
        used = max(0, opening.tokens - (began or 0))
        yield Send(wire.Closed(scored=scored, wasted=max(0, scored - used)))
    except Refuse as refuse:
        yield Send(refuse.frame)
    except GeneratorExit:
        if shelf is not None and name and cache is not None:
            shelf.put(name, cache)
            cache = None
        raise
    finally:
        if cache is not None:
            cache.close()


def _opened(model: CloudModel, name: str, prompt: list[int]) -> wire.Opened:
    return wire.Opened(
        session=name,
        model=model.name,
        vocabulary=model.vocabulary,
        vocabulary_size=model.vocabulary_size,
        end_ids=model.end_ids,
        prompt_tokens=len(prompt),
    )


def _step(talk: Talk) -> Mode:
    """Lockstep: the prediction for the next position, then wait."""
    while True:
        position = len(talk.answer)
        logprobs = yield from _score(talk, len(talk.prompt) + position - 1)
        payload = talk.codec.encode(logprobs[-1])
        yield Send(wire.Candidates(talk.mail.epoch, position, payload))
        ending = yield from _extended(talk)
        if ending is not None:
            return ending


def _scores(talk: Talk) -> Mode:
    """Draft: the predictions after each new token, in one pass and one frame."""
    first = len(talk.answer)
    while True:
        logprobs = yield from _score(talk, len(talk.prompt) + first - 1)
        payloads = tuple(talk.codec.encode(row) for row in logprobs)
        yield Send(wire.Scores(talk.mail.epoch, first, payloads))
        frame = yield from talk.mail.next()
        if isinstance(frame, wire.Turns):
            return frame
        if not isinstance(frame, wire.Extend) or not frame.tokens:
            raise out_of_turn(frame, "extend with tokens, or close")
        if len(frame.tokens) > talk.limits.draft_tokens:
            raise Refuse(
                "draft_too_long",
                "more tokens at once than this server scores",
                f"{len(frame.tokens)} tokens",
                f"at most {talk.limits.draft_tokens}",
                "Draft fewer tokens",
            )
        talk.extend(frame)
        first = frame.position + 1


def _score(talk: Talk, first: int) -> Generator[Action, Any, Logprobs]:
    """Predictions after each token from index `first` of prompt and answer on."""
    request = talk.request(first)
    load = Load(
        tokens=len(request.tokens), past=request.keep, candidates=talk.model.vocabulary_size
    )
    logprobs: Logprobs = yield Compute("score", request, load)
    # A cache that was built anew was fed more than what is asked about.
    logprobs = logprobs[first - len(talk.prompt) - len(talk.answer) :]
    talk.scored += len(logprobs)
    return logprobs


def _extended(talk: Talk) -> Generator[Action, Any, wire.Open | wire.Close | None]:
    """Wait for the answer to go on, and take in all that has arrived; or how it ends."""
    frame: wire.Up | None = yield from talk.mail.next()
    while frame is not None:
        if isinstance(frame, wire.Extend) and frame.tokens:
            talk.extend(frame)
            frame = (yield from talk.mail.already()) if talk.mail.more else None
        elif isinstance(frame, wire.Turns):
            return frame
        else:
            raise out_of_turn(frame, "extend with tokens, or close")
    return None


_MODES: dict[str, Callable[[Talk], Mode]] = {"step": _step, "stream": stream, "score": _scores}
