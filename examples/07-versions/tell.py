"""Says what this guest's version of the bus can do, does it, and shows what that took."""

from vmbus.client.service import VmbusError
from vmbus.protocol import Feature, version_text
from vmbus.protocol.versions import VERSIONS, Ability, abilities
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType

METER = "a5ad1e00-70c3-4f5b-8a6e-0d4a6d3c0700"
QUICK = "a5ad1e00-70c3-4f5b-8a6e-0d4a6d3c0710"
ROUNDS = 5


def yes(can, ability):
    return "yes" if ability in can else "no"


def connection(guest):
    """What was asked, and what came back."""
    for contact in guest.vmbus.state.contacts:
        answer = f"yes, in {contact.answer_bytes} bytes" if contact.supported else "no"
        print(f"asked for {version_text(contact.version)} in {contact.asked_bytes} bytes: {answer}")
    version = guest.vmbus.state.version
    release = next(row.release for row in VERSIONS if row.version == version)
    print(f"VMBus {version_text(version)}, since {release}")
    granted = [flag.name.lower() for flag in Feature if flag & guest.vmbus.state.features]
    can = abilities(version)
    print("features:", (", ".join(granted) or "none") if Ability.FEATURES in can else "not in this version")
    print("the guest names the processor for messages:", yes(can, Ability.MESSAGE_TARGET))
    print("UNLOAD is answered:", yes(can, Ability.UNLOAD_COMPLETE))
    return can


async def talk(guest, interface, can):
    """Packets there and back, and the traps that signalling them took on this side."""
    offer = next(offer for offer in guest.bus.offers if str(offer.interface) == interface)
    channel = await guest.open_channel(offer)
    for number in range(1, ROUNDS + 1):
        await channel.send(Packet(PacketType.INBAND, COMPLETION_REQUESTED, number, 0, bytes(8)))
        answer = await channel.receive()
    assert int.from_bytes(answer.payload, "little") == ROUNDS
    bits = Ability.INTERRUPT_PAGE in can
    if offer.monitor_id is not None:
        way = f"trigger {offer.monitor_id} of the monitor page"
    else:
        way = f"connection {offer.connection_id:#x}"
    if bits and not offer.dedicated:
        way += " and a bit of the interrupt page"
    flag = "flag 0 and a bit of the interrupt page" if bits else f"flag {offer.channel_id}"
    print(f"channel {offer.channel_id}: {ROUNDS} packets there and back")
    print(f"  to the host by {way}; to the guest by {flag}")
    return channel


async def main(guest):
    can = connection(guest)
    channel = await talk(guest, METER, can)
    await talk(guest, QUICK, can)
    try:
        await guest.vmbus.modify(channel, 1)
        word = "answered" if Ability.MODIFY_RESPONSE in can else "not answered"
        print("interrupts moved to processor 1:", word)
    except VmbusError as error:
        print("interrupts moved to processor 1:", error)
