"""The cloud's half of an answer, sans-IO: the same generator behind the real and simulated server.

It yields the actions of `edge_runtime.schedules.actions`: Receive what the device sends, Compute a
`ScoreRequest` or `ScoreBatch`, Send frames. It keeps nothing but the public query and the emitted
tokens.

    serve      one session: admit, then answer in the mode the device asked for
    admission  what a session may ask for, and the refusals
    mailbox    frames from the device, applied once and in their order whatever the line did
    stream     run-ahead: predict on and on, within the window
    tree       the continuations that run-ahead follows, likeliest first
    odds       how likely the device takes which token, learned from those it tells
    pace       how far ahead is far enough, from what the cloud itself observes
    cache      one KV cache and the tokens in it; the shelf for those of broken connections
"""

from cloud_sim.session.admission import Limits
from cloud_sim.session.cache import Shelf
from cloud_sim.session.serve import session

__all__ = ["Limits", "Shelf", "session"]
