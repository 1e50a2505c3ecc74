"""RNDIS control messages: what is taken, and what each is answered. Pure. Root side."""

from __future__ import annotations

import struct

from hypervisor.wire import BadValue, ShortMessage, Wire
from vsp_vsc.network.adapter import AdapterState, RndisState
from vsp_vsc.network.oids import Refused, query, set_oid
from vsp_vsc.network.rndis import (
    ALIGNMENT_FACTOR,
    HEADER_SIZE,
    MAX_PACKETS,
    MAX_TRANSFER,
    Oid,
    RndisComplete,
    RndisHeader,
    RndisIndicateStatus,
    RndisInitialize,
    RndisInitializeComplete,
    RndisQuery,
    RndisQueryComplete,
    RndisRequest,
    RndisReset,
    RndisResetComplete,
    RndisStatus,
    RndisType,
)

_CONNECTIONLESS = 1
_BODIES: dict[int, type[Wire]] = {
    RndisType.INITIALIZE: RndisInitialize,
    RndisType.HALT: RndisRequest,
    RndisType.QUERY: RndisQuery,
    RndisType.SET: RndisQuery,
    RndisType.RESET: RndisReset,
    RndisType.KEEPALIVE: RndisRequest,
    RndisType.INDICATE_STATUS: RndisIndicateStatus,
    RndisType.SET_EX: RndisQuery,
}
_ONLY_FROM_A_HOST = (RndisType.INDICATE_STATUS, RndisType.SET_EX)
_type = struct.Struct("<I").unpack_from
_OIDS = {int(oid): oid.name for oid in Oid}


def check(untrusted: bytes) -> bool:
    """Whether a control message is to be answered. Raises `WireError` for one that is none."""
    if len(untrusted) < HEADER_SIZE:
        raise ShortMessage("RNDIS message", HEADER_SIZE, len(untrusted))
    kind = _type(untrusted)[0]
    layout = _BODIES.get(kind)
    if layout is None:
        raise BadValue(f"RNDIS message of type {kind:#x}")
    if len(untrusted) < HEADER_SIZE + layout.SIZE:
        raise ShortMessage(f"RNDIS {RndisType(kind).name}", HEADER_SIZE + layout.SIZE, len(untrusted))
    return kind != RndisType.HALT and kind not in _ONLY_FROM_A_HOST


def is_mistake(message: bytes) -> bool:
    """Whether a message that is not answered should not have been sent."""
    return _type(message)[0] in _ONLY_FROM_A_HOST


def answer(state: AdapterState, message: bytes) -> tuple[bytes, str]:
    """What a message that `check` let pass is answered, and both in words."""
    match RndisType(_type(message)[0]):
        case RndisType.INITIALIZE:
            return _initialize(state, RndisInitialize.decode(message, HEADER_SIZE))
        case RndisType.QUERY:
            return _query(state, RndisQuery.decode(message, HEADER_SIZE))
        case RndisType.SET:
            return _set(state, RndisQuery.decode(message, HEADER_SIZE), message)
        case RndisType.RESET:
            state.reset()
            complete = RndisResetComplete(RndisStatus.SUCCESS, 1)  # the driver sets its filter and list anew
            return encode(RndisType.RESET_COMPLETE, complete.encode()), "RESET"
        case RndisType.KEEPALIVE:
            request = RndisRequest.decode(message, HEADER_SIZE)
            complete_alive = RndisComplete(request.request_id, RndisStatus.SUCCESS)
            return encode(RndisType.KEEPALIVE_COMPLETE, complete_alive.encode()), "KEEPALIVE"
        case other:
            raise AssertionError(f"{other.name} is not answered")


def encode(kind: RndisType, body: bytes) -> bytes:
    """A message of the host's."""
    return RndisHeader(kind, HEADER_SIZE + len(body)).encode() + body


def indicate(status: RndisStatus, about: bytes = b"") -> bytes:
    """What the host tells unasked."""
    offset = RndisIndicateStatus.SIZE if about else 0
    return encode(RndisType.INDICATE_STATUS, RndisIndicateStatus(status, len(about), offset).encode() + about)


def _initialize(state: AdapterState, request: RndisInitialize) -> tuple[bytes, str]:
    status = RndisStatus.SUCCESS
    if state.rndis is RndisState.OPERATIONAL:
        status = RndisStatus.FAILURE  # a second one, without HALT in between
    state.rndis = RndisState.OPERATIONAL
    complete = RndisInitializeComplete(
        request_id=request.request_id,
        status=status,
        major=1,
        minor=0,
        device_flags=_CONNECTIONLESS,
        medium=0,
        max_packets=MAX_PACKETS,
        max_transfer=MAX_TRANSFER,
        alignment_factor=ALIGNMENT_FACTOR,
    )
    return encode(RndisType.INITIALIZE_COMPLETE, complete.encode()), _words("INITIALIZE", status)


def _query(state: AdapterState, request: RndisQuery) -> tuple[bytes, str]:
    status, information = RndisStatus.SUCCESS, b""
    try:
        information = query(state, request.oid)
    except Refused as refused:
        status = refused.status
    # The offset is told even where there is nothing: Linux's driver takes an answer with less for damaged.
    complete = RndisQueryComplete(request.request_id, status, len(information), RndisQueryComplete.SIZE)
    words = _words(f"QUERY {_oid_words(request.oid)}", status)
    return encode(RndisType.QUERY_COMPLETE, complete.encode() + information), words


def _set(state: AdapterState, request: RndisQuery, message: bytes) -> tuple[bytes, str]:
    status, reason = RndisStatus.SUCCESS, ""
    start = HEADER_SIZE + request.info_offset
    value = message[start : start + request.info_length]
    if request.info_length and (request.info_offset < RndisQuery.SIZE or len(value) < request.info_length):
        status = RndisStatus.INVALID_DATA
        reason = f"{request.info_length} bytes at {request.info_offset} are not in the message"
    else:
        try:
            set_oid(state, request.oid, value)
        except Refused as refused:
            status, reason = refused.status, str(refused)
    complete = RndisComplete(request.request_id, status)
    words = _words(f"SET {_oid_words(request.oid)}", status, reason)
    return encode(RndisType.SET_COMPLETE, complete.encode()), words


def _oid_words(untrusted_oid: int) -> str:
    return _OIDS.get(untrusted_oid) or f"OID {untrusted_oid:#010x}"


def _words(what: str, status: RndisStatus, reason: str = "") -> str:
    if not status:
        return what
    return f"{what}: {status.name}" + (f", {reason}" if reason else "")
