"""The frames that cross the wire, and their exact bytes.

One message is ``length (u32, little-endian) | MessagePack body | zero padding``. The length lets a
frame be padded to a fixed size (`pad_to`), since sizes alone can tell what was said
(arXiv 2411.01076). A frame that goes up carries nothing but the public query, the tokens already
emitted and flow control: no clock, no random number, nothing of the private context. The test of
that is `tests/schedules/test_lockstep.py` and `tests/schedules/test_runahead.py`.

Position `p` of an answer is its p-th token, from 0. `Candidates(position=p)` is the cloud's
prediction FOR position p, given tokens 0 to p-1.
"""

from __future__ import annotations

import struct
from typing import Literal, TypeVar

import msgspec
from msgspec.structs import replace

from edge_runtime.errors import ConnectionFailed

PROTOCOL = 1
"""Raised whenever a frame changes in a way an older peer would misread."""

Mode = Literal["step", "stream", "score"]
"""What the cloud does after an `Extend`: predict the next position and wait (`step`, lockstep);
go on along its own best tokens within the window (`stream`, run-ahead); predict the position after
each of the tokens, in one pass (`score`, draft)."""

F = TypeVar("F")

_LENGTH = struct.Struct("<I")
_LENGTH_BYTES = _LENGTH.size
_STAMP = struct.Struct("<QIIQ")
_LONGEST_US = (1 << 32) - 1


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """When the cloud did what, in microseconds on its own clock; written by the cloud's driver."""

    received_us: int = 0
    """When the uplink frame that led to this one had arrived (the newest one, for run-ahead)."""
    queue_us: int = 0
    """Time that work for this frame waited for other sessions."""
    compute_us: int = 0
    """Time spent computing for this frame."""
    sent_us: int = 0
    """When this frame was handed to the transport."""

    def pack(self) -> bytes:
        """24 bytes whatever the values, so that a frame's size does not depend on the clock.

        What a clock that jumped makes of a span is cut to what fits.
        """
        times = self.received_us, self.queue_us, self.compute_us, self.sent_us
        try:
            return _STAMP.pack(*times)
        except struct.error:
            most = (1 << 64) - 1, _LONGEST_US, _LONGEST_US, (1 << 64) - 1
            return _STAMP.pack(*(min(max(0, t), m) for t, m in zip(times, most, strict=True)))

    @classmethod
    def unpack(cls, raw: bytes) -> Stamp:
        """The inverse of `pack`; an empty or odd-sized stamp is all zeros."""
        return cls(*_STAMP.unpack(raw)) if len(raw) == _STAMP.size else cls()


# --- up: from the device to the cloud ---


class Open(msgspec.Struct, frozen=True, tag="open", array_like=True):
    """Begin an answer, or resume one (`session` and `emitted` of the broken connection)."""

    protocol: int
    query: str
    vocabulary: str
    """SHA-256 of the device's vocabulary (`edge_runtime.vocabulary`); empty: not compared."""
    codec: str
    mode: Mode
    max_tokens: int
    window: int = 0
    """`stream`: positions the cloud may be ahead of the last credit (0: the cloud adapts it)."""
    branches: int = 1
    """`stream`: continuations to follow at once (rows of a forward pass), the best one included."""
    depth: int = 0
    """`stream`: how many steps a side branch is followed (0: as far as the window)."""
    session: str = ""
    emitted: tuple[int, ...] = ()
    epoch: int = 0
    """The epoch that frames of a resumed answer carry; the next `Extend` has the one after it."""
    least_chance: float = 0.0
    """`stream`: continuations less likely than this are not computed ahead."""


class Extend(msgspec.Struct, frozen=True, tag="extend", array_like=True):
    """The answer from `position` on is `tokens`: roll back to `position` first if you are ahead.

    What comes before `position` is what the cloud has been told, and after that its own best
    tokens. `epoch` counts these frames: it marks all that follows from this one, and one that
    comes twice or too early can be told from the next.
    """

    epoch: int
    position: int
    tokens: tuple[int, ...]


class Credit(msgspec.Struct, frozen=True, tag="credit", array_like=True):
    """`stream`: the device agrees with all tokens before `position`; the window moves up."""

    epoch: int
    position: int


class Close(msgspec.Struct, frozen=True, tag="close", array_like=True):
    """The device has what it wanted."""

    tokens: int = 0
    """Length of the answer, so that the cloud can say what it computed in vain."""


# --- down: from the cloud to the device ---


class Opened(msgspec.Struct, frozen=True, tag="opened", array_like=True):
    """The session exists; `Candidates` for position len(emitted) follow."""

    session: str
    model: str
    vocabulary: str
    vocabulary_size: int
    end_ids: tuple[int, ...]
    prompt_tokens: int
    stamp: bytes = b""


class Candidates(msgspec.Struct, frozen=True, tag="candidates", array_like=True):
    """The cloud's prediction for `position`, encoded by the session's candidate codec."""

    epoch: int
    position: int
    payload: bytes
    after: tuple[int, ...] = ()
    """The tokens directly before `position` that this prediction assumes and that the cloud chose
    itself, since the last token it had from the device: empty in lockstep. All tokens before those
    are the answer's own, so the prediction holds if and only if the answer goes on with `after`."""
    stamp: bytes = b""


class Scores(msgspec.Struct, frozen=True, tag="scores", array_like=True):
    """`score`: predictions for `position`, `position` + 1, ..., from one forward pass."""

    epoch: int
    position: int
    payloads: tuple[bytes, ...]
    stamp: bytes = b""


class Refusal(msgspec.Struct, frozen=True, tag="refusal", array_like=True):
    """The cloud will not: the parts of an error the user can act on (see `errors.Refused`)."""

    code: str
    where: str
    what: str
    got: str = ""
    allowed: str = ""
    todo: str = ""


class Closed(msgspec.Struct, frozen=True, tag="closed", array_like=True):
    """The answer to `Close`: what the cloud computed for this session."""

    scored: int
    """Positions predicted."""
    wasted: int
    """Of those, positions on tokens that the answer did not take."""
    stamp: bytes = b""


Up = Open | Extend | Credit | Close
Down = Opened | Candidates | Scores | Refusal | Closed
Frame = Up | Down
Asks = Extend | Open
"""What the device waits for an answer to."""
Turns = Open | Close
"""What ends a mode of the session."""
Predicts = Candidates | Scores
"""What can be steered. (In all of these the most frequent comes first: `isinstance` tells a struct
of the class asked about at once, but takes ten times as long over one that is of another.)"""

_encoder = msgspec.msgpack.Encoder()
_decode_up = msgspec.msgpack.Decoder(Up)
_decode_down = msgspec.msgpack.Decoder(Down)


def encode(frame: Frame, pad_to: int = 0) -> bytes:
    """The message for `frame`, padded with zeros to a multiple of `pad_to` bytes (0: none)."""
    body = _encoder.encode(frame)
    message = _LENGTH.pack(len(body)) + body
    if pad_to > 1:
        message += bytes(-len(message) % pad_to)
    return message


def size(frame: Frame, pad_to: int = 0) -> int:
    """Bytes of `encode(frame, pad_to)`."""
    whole = _LENGTH_BYTES + len(_encoder.encode(frame))
    return whole + -whole % pad_to if pad_to > 1 else whole


def decode_up(message: bytes) -> Up:
    """What a device sent. Raises `ConnectionFailed` on anything that is no frame of ours."""
    return _decode(message, _decode_up)


def decode_down(message: bytes) -> Down:
    """What a cloud sent. Raises `ConnectionFailed` on anything that is no frame of ours."""
    return _decode(message, _decode_down)


def stamped(frame: Down, stamp: Stamp) -> Down:
    """`frame` with the cloud's times in it; a refusal carries none."""
    if type(frame) is Refusal:
        return frame
    return replace(frame, stamp=stamp.pack())


def _decode(message: bytes, decoder: msgspec.msgpack.Decoder[F]) -> F:
    if len(message) < _LENGTH.size:
        raise ConnectionFailed(
            "wire", "a message is too short for a frame", got=f"{len(message)} bytes"
        )
    (length,) = _LENGTH.unpack_from(message)
    body = memoryview(message)[_LENGTH.size : _LENGTH.size + length]
    if len(body) != length:
        raise ConnectionFailed(
            "wire", "a message is cut short", got=f"{len(body)} bytes", allowed=f"{length} bytes"
        )
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConnectionFailed(
            "wire", f"a message is no frame of protocol {PROTOCOL}: {error}"
        ) from error
