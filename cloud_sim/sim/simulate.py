"""The virtual-time driver: runs a schedule and a cloud session over simulated links, in SimPy.

The schedule and the session are the generators that run over real sockets too; their work is
really done (by the models, a tape or a fake) and the simulated clock is charged what the cost
models say it would take. Only modelled time counts: how long the work takes here does not matter.
`simulate` runs one answer alone; `cloud_sim.sim.exchange` is what it runs.
"""

from __future__ import annotations

from cloud_sim.net.links import Link
from cloud_sim.net.transport import TCP, Transport
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.engine import OwnGpu
from cloud_sim.sim.exchange import UNLABELLED, Exchange, Labels
from cloud_sim.sim.waiting import Clock
from edge_runtime.schedules.actions import Schedule, Session
from edge_runtime.transcript import Transcript


def simulate(
    schedule: Schedule,
    session: Session,
    *,
    uplink: Link,
    downlink: Link,
    device_costs: DeviceCosts,
    cloud_costs: CloudCosts,
    transport: Transport = TCP,
    labels: Labels = UNLABELLED,
    pad_to: int = 0,
    connect: bool = False,
) -> Transcript:
    """One answer in virtual time, with the cloud to itself.

    Parameters
    ----------
    schedule, session : the two halves, not started.
    uplink, downlink : fresh links; their random streams carry the seed (`profiles.Network.links`).
    connect : whether the connection is still to be set up (its round trips count towards the time
        to first token) or is there already.

    Raises what the schedule or the session raises, and `ConnectionFailed` if both wait for ever.

    """
    clock = Clock()
    exchange = Exchange(
        clock,
        schedule,
        session,
        uplink=uplink,
        downlink=downlink,
        device_costs=device_costs,
        engine=OwnGpu(clock, cloud_costs),
        transport=transport,
        labels=labels,
        pad_to=pad_to,
        connect=connect,
    )
    exchange.start()
    clock.run()
    return exchange.result()
