"""Decoders of the integration components' bytes."""

from __future__ import annotations

import ipaddress

from tests.hostile.decoder_rows import NONE, Decoder, Rows, at_once, stateless
from vsp_vsc.integration import protocol as integration
from vsp_vsc.integration.file_copy import protocol as file_copy
from vsp_vsc.integration.file_copy.vsc import FileCopyDriver
from vsp_vsc.integration.heartbeat.vsc import HeartbeatDriver
from vsp_vsc.integration.kvp import ip_info
from vsp_vsc.integration.kvp import protocol as kvp
from vsp_vsc.integration.kvp.vsc import KvpDriver
from vsp_vsc.integration.protocol import Component, Version
from vsp_vsc.integration.responder import Responder
from vsp_vsc.integration.session import Session
from vsp_vsc.integration.shutdown import protocol as shutdown
from vsp_vsc.integration.shutdown.vsc import ShutdownDriver
from vsp_vsc.integration.time_sync import vsp as time_sync
from vsp_vsc.integration.time_sync.protocol import TimeMessage
from vsp_vsc.integration.vss import protocol as vss
from vsp_vsc.integration.vss.vsc import VssDriver


def handshake(component: Component) -> bytes:
    """A host's offer of versions."""
    body = integration.encode_negotiate(integration.FRAMEWORK_VERSIONS, integration.VERSIONS[component])
    return integration.encode_message(Component.NEGOTIATE, body, transaction_id=1)


def answered(component: Component) -> bytes:
    """A guest's choice."""
    framework, version = integration.FRAMEWORK_VERSIONS[0], integration.VERSIONS[component][0]
    body = integration.encode_negotiate([framework], [version])
    return integration.encode_message(Component.NEGOTIATE, body, transaction_id=0, flags=integration.RESPONSE)


def a_record() -> bytes:
    """Of a session that is ready."""
    session = Session(Component.KVP)
    session.negotiate()
    session.take(answered(Component.KVP))
    return session.save() or b""


def choose_version(component: Component, number: int) -> Version:
    """One that it speaks."""
    versions = integration.VERSIONS[component]
    return versions[number % len(versions)]


def take_in_session(data: bytes, number: int) -> object:
    component = list(integration.VERSIONS)[number % len(integration.VERSIONS)]
    session = Session(component)
    session.negotiate()
    if number & 1 << 20:
        session.take(answered(component))
        session.ask(b"")
    return session.take(data)


def answer_host(data: bytes, number: int) -> object:
    """Before versions are agreed on, or after."""
    responder = Responder(Component.KVP, KvpDriver().answer)
    if number & 1:
        responder.take(handshake(Component.KVP))
    return integration.decode_message(responder.take(data))


def answer_host_later(data: bytes, number: int) -> object:
    responder = Responder(Component.VSS, VssDriver().answer)
    if number & 1:
        at_once(responder.answer(handshake(Component.VSS)))
    return integration.decode_message(at_once(responder.answer(data)))


def ask_for_items(data: bytes, number: int) -> object:
    """A guest that takes any addresses; what it was told it can be asked for, in another version too."""
    driver = KvpDriver()
    driver.on_set_addresses = lambda info: True
    told = driver.answer(data, choose_version(Component.KVP, number))
    asked = bytes([kvp.Operation.GET_IP_INFO]) + data[1:]
    return told, driver.answer(asked, choose_version(Component.KVP, number >> 4))


def copy_file(data: bytes, number: int) -> object:
    """With a file begun, or none."""
    driver = FileCopyDriver()
    if number & 1:
        driver.answer(BEGIN_FILE, Version(1, 1))
    if number & 2:
        driver.answer(file_copy.encode_write(0, b"words"), Version(1, 1))
    return driver.answer(data, Version(1, 1))


def asked(component: Component, body: bytes) -> bytes:
    """A host's question."""
    return integration.encode_message(component, body, transaction_id=1)


ADDRESSES = ip_info.IpInfo(
    "00:15:5D:01:02:03",
    True,
    (ipaddress.ip_interface("10.0.0.2/24"), ipaddress.ip_interface("fe80::2/64")),
    (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fe80::1")),
    (ipaddress.ip_address("10.0.0.1"),),
)
IP_MESSAGES = tuple(
    ip_info.encode_ip(operation, ADDRESSES, version)
    for operation in (kvp.Operation.GET_IP_INFO, kvp.Operation.SET_IP_INFO)
    for version in (Version(4, 0), Version(5, 0))
)
UNENDED_NAME = ip_info.IpTexts("é".encode("utf-16-le") * 128).encode()
LONGER_GATEWAYS = ip_info.IpTexts(gateways="1::3:4:5:6:7:8;".encode("utf-16-le") * 34).encode()
"""Each of them is shorter than the same address as it is written back."""
TIGHT_TEXTS = tuple(
    (bytes((kvp.Operation.SET_IP_INFO, 0)) + body).ljust(kvp.MESSAGE_SIZE, b"\0")
    for body in (UNENDED_NAME, LONGER_GATEWAYS)
)

KVP_ITEM = kvp.encode_item("key", "value")
BEGIN_FILE = file_copy.encode_start("/a/b", "words.txt", 10, file_copy.CopyFlags.CREATE_PATH)
VSS_MESSAGES = tuple(vss.encode_vss(operation) for operation in vss.VssOperation)

DECODERS = {
    "vsp_vsc.integration.file_copy.protocol.decode_name": Decoder(
        stateless(file_copy.decode_name), ("a name\0".encode("utf-16-le").ljust(520, b"\0"), b"\0\xd8\0\0")
    ),
    "vsp_vsc.integration.file_copy.vsc.FileCopyDriver.answer": Decoder(
        copy_file,
        (
            BEGIN_FILE,
            file_copy.encode_write(0, b"words"),
            file_copy.encode_write(5, b"words"),
            file_copy.encode_end(file_copy.FileCopyOperation.COMPLETE_FCOPY),
            file_copy.encode_end(file_copy.FileCopyOperation.CANCEL_FCOPY),
        ),
    ),
    "vsp_vsc.integration.heartbeat.vsc.HeartbeatDriver.answer": Decoder(
        lambda data, number: HeartbeatDriver().answer(data, integration.NO_VERSION), (bytes(40),)
    ),
    "vsp_vsc.integration.kvp.ip_info.decode_ip": Decoder(
        lambda data, number: ip_info.decode_ip(data, choose_version(Component.KVP, number)), IP_MESSAGES
    ),
    "vsp_vsc.integration.kvp.protocol.decode_item": Decoder(
        lambda data, number: kvp.decode_item(data, number % 8), (KVP_ITEM, bytes(4) + KVP_ITEM)
    ),
    "vsp_vsc.integration.kvp.protocol.decode_text": Decoder(
        lambda data, number: kvp.decode_text(data, number & 0x3FF), ("text".encode("utf-16-le"),)
    ),
    "vsp_vsc.integration.kvp.protocol.decode_value": Decoder(
        lambda data, number: kvp.decode_value(number & 15, data, number >> 8 & 0x1FF), (bytes(2048),)
    ),
    "vsp_vsc.integration.kvp.vsc.KvpDriver.answer": Decoder(
        ask_for_items,
        (
            *(kvp.encode_request(operation, kvp.Pool.GUEST, KVP_ITEM) for operation in kvp.Operation),
            *IP_MESSAGES,
            *TIGHT_TEXTS,
        ),
    ),
    "vsp_vsc.integration.protocol.decode_message": Decoder(
        stateless(integration.decode_message), (handshake(Component.KVP),)
    ),
    "vsp_vsc.integration.protocol.decode_offer": Decoder(
        stateless(integration.decode_offer), (handshake(Component.KVP)[20:], handshake(Component.SHUTDOWN)[20:])
    ),
    "vsp_vsc.integration.protocol.decode_choice": Decoder(
        lambda data, number: integration.decode_choice(
            data, integration.FRAMEWORK_VERSIONS, integration.VERSIONS[Component.KVP]
        ),
        (answered(Component.KVP)[20:],),
    ),
    "vsp_vsc.integration.responder.Responder.answer": Decoder(
        answer_host_later, (handshake(Component.VSS), *(asked(Component.VSS, body) for body in VSS_MESSAGES))
    ),
    "vsp_vsc.integration.responder.Responder.take": Decoder(
        answer_host,
        (handshake(Component.KVP), asked(Component.KVP, kvp.encode_request(kvp.Operation.SET, 1, KVP_ITEM))),
    ),
    "vsp_vsc.integration.session.Session.load": Decoder(
        lambda data, number: Session.load(Component.KVP, data), (a_record(),)
    ),
    "vsp_vsc.integration.session.Session.take": Decoder(
        take_in_session, tuple(answered(component) for component in integration.VERSIONS)
    ),
    "vsp_vsc.integration.shutdown.protocol.decode_text": Decoder(
        stateless(shutdown.decode_text), (shutdown.encode_text("because"),)
    ),
    "vsp_vsc.integration.shutdown.vsc.ShutdownDriver.answer": Decoder(
        lambda data, number: ShutdownDriver().answer(data, integration.NO_VERSION), (bytes(3000),)
    ),
    "vsp_vsc.integration.time_sync.vsp._told": Decoder(
        time_sync._told, (TimeMessage(1, 2, 3, 1).encode(), TimeMessage(1, (1 << 64) - 1, 3, 1).encode()), NONE
    ),
    "vsp_vsc.integration.vss.vsc.VssDriver.answer": Decoder(
        lambda data, number: at_once(VssDriver().answer(data, choose_version(Component.VSS, number))), VSS_MESSAGES
    ),
}

ELSEWHERE = {
    "vsp_vsc.integration.component.IntegrationVsp._take": "`Session.take`, and a word for the trace",
    "vsp_vsc.integration.component.IntegrationVsp.load": "`Session.load`",
    "vsp_vsc.integration.component.Link.take": "`Session.take`",
    "vsp_vsc.integration.kvp.ip_info._array": "of `decode_ip`",
    "vsp_vsc.integration.kvp.ip_info._parts": "of `decode_ip`",
    "vsp_vsc.integration.kvp.vsc.KvpDriver._addresses": "of `answer`",
    "vsp_vsc.integration.responder.Responder._read": "of `take` and `answer`",
    "vsp_vsc.integration.time_sync.vsc.TimeSyncDriver.answer": "`test_the_date_that_a_host_sends`",
}

ROWS = Rows(DECODERS, ELSEWHERE, {"vsp_vsc.integration.": "pairs/test_integration_pair.py"})
