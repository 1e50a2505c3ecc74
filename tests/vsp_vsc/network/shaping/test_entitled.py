"""What ports and pools are due, by the rule of all resources, while frames wait. Pure."""

from __future__ import annotations

from hypervisor.scheduler.divvy import Due
from tests.vsp_vsc.network.shaping.test_shaper import MBIT, Slow, full
from vsp_vsc.network.shaping.settings import Bandwidth
from vsp_vsc.network.switch.ports import Port


def crowd(*figures: tuple[Bandwidth | None, str], host: int = 0) -> tuple[Slow, list[Port]]:
    """Ports that all have frames waiting, but the last one."""
    lan = Slow()
    lan.shaping.set_host(host)
    lan.shaping.set_pool("outer", "", Bandwidth(limit=8 * MBIT, weight=100))
    lan.shaping.set_pool("inner", "outer", Bandwidth(weight=300))
    ports = [lan.shaped(number, own, None, pool).port for number, (own, pool) in enumerate(figures, 1)]
    for number, port in enumerate(ports[:-1], 1):
        port.transmit([full(len(ports), number)] * 20)
    return lan, ports


def test_shares_of_what_a_pool_may_send() -> None:
    """A limit of 8 Mbit/s: 100 to 300 between a port and a pool inside, there 1 to 1; who sends nothing is due nothing,
    and what a limit leaves goes to the others.
    """
    lan, ports = crowd(
        (Bandwidth(weight=100), "outer"), (Bandwidth(), "inner"), (Bandwidth(), "inner"), (None, "outer")
    )
    due = lan.shaping.due({})
    assert [due[port.name].amount for port in ports] == [2 * MBIT, 3 * MBIT, 3 * MBIT, 0]
    assert due["pool/outer"] == Due(8 * MBIT, True)
    assert due["pool/inner"] == Due(6 * MBIT, True)
    assert due["host"] == Due(None, False), "nothing bounds it"
    lan.shaping.change(ports[1].name, Bandwidth(limit=MBIT), None, "inner")
    due = lan.shaping.due({})
    assert [due[port.name].amount for port in ports] == [2 * MBIT, MBIT, 5 * MBIT, 0]


def test_who_has_nothing_waiting_is_due_what_it_sends() -> None:
    """It wants no more; and a reservation that it does not use is lent out."""
    lan, (busy, idle) = crowd((Bandwidth(), ""), (Bandwidth(reserve=4 * MBIT), ""), host=10 * MBIT)
    due = lan.shaping.due({})
    assert (due[busy.name].amount, due[idle.name].amount) == (10 * MBIT, 0)
    assert due["host"] == Due(10 * MBIT, True), "who has frames waiting wants more than there is"
    numbers = {lane.flow.name: number for number, lane in lan.shaping._by_flow.items() if lane.flow is not None}
    due = lan.shaping.due({numbers[idle.name]: 3 * MBIT})
    assert (due[busy.name].amount, due[idle.name].amount) == (7 * MBIT, 3 * MBIT)
    assert due["host"] == Due(10 * MBIT, True)


def test_ports_that_nothing_limits_are_due_nothing_special() -> None:
    """They are not in the tree at all."""
    lan = Slow()
    lan.shaped(1)
    assert lan.shaping.due({}) == {}
    assert lan.shaping.sent() == {}
