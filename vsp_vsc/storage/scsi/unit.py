"""A logical unit as its initiators share it: who is connected, what speaks against a command, resets. Root side.

A kind of unit (a disk: `target.py`) has a table of its commands (`commands.py`). Before one is looked at: unit
attentions that tell of a reset, then reservations, then other unit attentions (SAM-5 5.3.3), then whether the unit was
stopped. In the ordinary state, where none of these is so, all that costs is a look at one flag.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, ClassVar

import attrs

from hypervisor.inspect import Branch, counters
from vsp_vsc.storage.scsi.answer import RESERVATION_CONFLICT, Refused, ScsiResult, Views
from vsp_vsc.storage.scsi.cdb import ScsiStatus
from vsp_vsc.storage.scsi.modes import ModePages
from vsp_vsc.storage.scsi.nexus import Nexus
from vsp_vsc.storage.scsi.reservations import Reservations
from vsp_vsc.storage.scsi.sense import Reason, descriptor_sense, fixed_sense

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.commands import CommandSet, Starter


@attrs.frozen
class TargetStatistics:
    """What a unit has answered."""

    check_conditions: int
    """Commands that ended with sense data."""
    host_errors: int
    """Those of them that were the host's storage's fault."""
    conflicts: int
    """Commands that another initiator's reservation kept out."""


class LogicalUnit:
    """What is common to all kinds. Names come from `identity`: the same for the same unit, others for others."""

    commands: ClassVar[CommandSet]
    device_type = 0x00
    medium_type = 0x00
    removable = False
    read_only = False
    block_size = 512
    """Bytes in a logical block."""

    def __init__(self, identity: str, vendor: str, product: str, revision: str) -> None:
        self.vendor = vendor.encode("ascii").ljust(8)[:8]
        self.product = product.encode("ascii").ljust(16)[:16]
        self.revision = revision.encode("ascii").ljust(4)[:4]
        digest = hashlib.sha256(identity.encode()).digest()
        self.serial = digest[:8].hex()
        """What INQUIRY's unit serial number page says."""
        self.wwn = bytes((0x30 | digest[0] & 0x0F,)) + digest[1:8]
        """A locally assigned NAA identifier."""
        self.nexuses: dict[str, Nexus] = {}
        """By initiator."""
        self.reservations = Reservations()
        self.modes = ModePages()
        self.stopped = False
        """START STOP UNIT has said so."""
        self.starts = 0
        """How often the unit was started after it was stopped."""
        self.preventing: set[Nexus] = set()
        """Who wants the medium to stay."""
        self._check_conditions = self._host_errors = self._conflicts = 0

    def inspect(self) -> Branch:
        """What initiators share."""
        seen: dict[str, object] = {
            "vendor": self.vendor.decode().rstrip(),
            "product": self.product.decode().rstrip(),
            "serial": self.serial,
            "wwn": self.wwn.hex(),
            "block_size": self.block_size,
            "read_only": self.read_only,
            "removable": self.removable,
            "stopped": self.stopped,
            "starts": self.starts,
            "medium_held_by": len(self.preventing),
        }
        return Branch(
            seen
            | self.medium()
            | {
                "counters": lambda: counters(attrs.asdict(self.statistics())),
                "reservations": self.reservations.inspect,
            }
        )

    def medium(self) -> dict[str, object]:
        """For `inspect`: what a kind of unit has to show of its medium."""
        return {}

    @property
    def starters(self) -> tuple[Starter, ...]:
        """By operation code, what carries out a command."""
        return self.commands.starters

    def statistics(self) -> TargetStatistics:
        """Counters, as of now."""
        return TargetStatistics(self._check_conditions, self._host_errors, self._conflicts)

    # --- who is connected

    def connect(self, initiator: str, *, transport_id: bytes | None = None, attention: Reason | None = None) -> Nexus:
        """A nexus for an initiator, named by its port. ValueError if it has one.

        Who comes when nobody is there finds the unit as after power on, but for persistent reservations.
        `attention` is what a new nexus is told first; a transport that has its own way to tell of a restart, as VMBus
        has, leaves it out. `transport_id` is what others see of the initiator where reservations are listed.
        """
        if initiator in self.nexuses:
            raise ValueError(f"{initiator} is connected already")
        if not self.nexuses:
            self._power_on()
        nexus = Nexus(self, initiator, transport_id or _transport_id(initiator))
        self.nexuses[initiator] = nexus
        if attention is not None:
            nexus.attend(attention)
        self.look_for_hindrances(nexus)
        return nexus

    def disconnect(self, nexus: Nexus) -> None:
        """For `Nexus.close`."""
        if self.nexuses.get(nexus.initiator) is nexus:
            del self.nexuses[nexus.initiator]
            self.reservations.lose(nexus.initiator)
            self.preventing.discard(nexus)
            self.look_at_all()

    @property
    def under_way(self) -> int:
        """Commands of all initiators that have no result yet."""
        return sum(nexus.under_way for nexus in self.nexuses.values())

    # --- events

    def attend(self, reason: Reason, *, but: Nexus | None = None) -> None:
        """Establish a unit attention for all initiators, or all but one."""
        for nexus in self.nexuses.values():
            if nexus is not but:
                nexus.attend(reason)

    def reset(self, reason: Reason = Reason.DEVICE_RESET) -> None:
        """LOGICAL UNIT RESET, or that of a bus: everything under way is aborted, settings are as at first.

        Persistent reservations stay (SPC-4 5.13.3); everyone is told.
        """
        for nexus in self.nexuses.values():
            nexus.abort_all()
        self._power_on()
        self.look_at_all()
        self.attend(reason)

    def _power_on(self) -> None:
        """What does not last."""
        self.reservations.forget_old_style()
        self.modes.restore()
        self.modes_changed()
        self.stopped = False
        self.preventing.clear()

    def modes_changed(self) -> None:
        """Mode parameters have new values; for kinds of units that act by them."""

    # --- what kinds of units say of themselves

    def vital_pages(self) -> dict[int, bytes]:
        """Pages of vital product data by number, without their headers (`primary.vital_pages`)."""
        raise NotImplementedError

    def device_specific(self) -> int:
        """That byte of MODE SENSE's header."""
        raise NotImplementedError

    def block_descriptor(self, *, long: bool) -> bytes:
        """Of MODE SENSE: 8 bytes, or 16 if `long`."""
        raise NotImplementedError

    # --- before a command

    def look_for_hindrances(self, nexus: Nexus) -> None:
        """Whether `hindrance` has to be asked for each command of a nexus."""
        nexus.hinder(bool(nexus.attentions) or self.stopped or self.reservations.any)

    def look_at_all(self) -> None:
        """After something that concerns all nexuses."""
        for nexus in self.nexuses.values():
            self.look_for_hindrances(nexus)

    def hindrance(self, nexus: Nexus, cdb: bytes) -> ScsiResult | None:
        """Why a command is not even looked at, if so."""
        command = self.commands.find(cdb)
        listens = command is None or not command.despite_attention
        attentions = nexus.attentions
        if listens and attentions and attentions[0].is_reset:
            return self.refuse(Refused(nexus.next_attention() or Reason.NO_SENSE))
        if command is not None and self.reservations.bars(nexus.initiator, command.access_of(cdb)):
            return self.conflict()
        if listens and attentions:
            return self.refuse(Refused(nexus.next_attention() or Reason.NO_SENSE))
        if self.stopped and command is not None and command.medium:
            return self.refuse(Refused(Reason.STOPPED))
        return None

    def read_now(self, lba: int, count: int, views: Views) -> bool:
        """See `Nexus.read_now`; for kinds of units that can."""
        return False

    # --- refusals

    def refuse(self, refused: Refused) -> ScsiResult:
        """CHECK CONDITION, in the format of sense data that the control mode page says."""
        self._check_conditions += 1
        sense = descriptor_sense if self.modes.descriptor_sense else fixed_sense
        return ScsiResult(
            ScsiStatus.CHECK_CONDITION,
            sense(
                refused.reason,
                information=refused.information,
                field=refused.field,
                bit=refused.bit,
                in_data=refused.in_data,
            ),
        )

    def conflict(self) -> ScsiResult:
        """RESERVATION CONFLICT."""
        self._conflicts += 1
        return RESERVATION_CONFLICT


def _transport_id(initiator: str) -> bytes:
    """A TransportID in SRP's form (SPC-4 7.6.4.5), for transports that no standard knows: it has room for 16 bytes."""
    return bytes((0x04,)) + bytes(7) + hashlib.sha256(initiator.encode()).digest()[:16]
