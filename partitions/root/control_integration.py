"""What a host does for requests that its guests answer: key-value pairs, file copy, freezing. Root side.

A paused guest would answer when it goes on, so it is not asked.
"""

from __future__ import annotations

import os
from typing import Any

from partitions import control_protocol as protocol
from partitions.figures import figures_of
from partitions.host import NoAnswer, Pool, Vm, VmState
from partitions.root.control_requests import Denied
from vsp_vsc.integration.file_copy.vsp import CopyBroken

ASKED = protocol.Kvp | protocol.Copy | protocol.Freeze | protocol.Thaw


def pool_name(pool: Pool) -> str:
    """As people write it."""
    return pool.name.lower().replace("_", "-")


async def ask_guest(vm: Vm, request: ASKED) -> Any:
    """The result of one request. Raises `Denied`."""
    if vm.state is not VmState.RUNNING:
        raise Denied(
            "wrong_state", f"{vm.name} is {vm.state.value.replace('_', ' ')}: only a guest that runs can answer"
        )
    try:
        match request:
            case protocol.Kvp():
                return await _kvp(vm, request)
            case protocol.Copy():
                flags = {"overwrite": request.overwrite, "create_path": request.create_path}
                size = await vm.copy_file(request.source, request.path, **flags)
                return {"vm": vm.name, "path": request.path, "bytes": size}
            case protocol.Freeze():
                await vm.freeze(request.seconds)
            case protocol.Thaw():
                await vm.thaw()
    except (NoAnswer, CopyBroken, ValueError) as error:
        raise Denied("refused", str(error)) from None
    except OSError as error:
        raise Denied("refused", f"{os.fspath(error.filename or '')}: {error.strerror or error}") from None
    return {**_row(vm), "file_systems": vm.freeze_state.value}


async def _kvp(vm: Vm, request: protocol.Kvp) -> list[dict[str, Any]]:
    pool = None if request.pool is None else Pool[request.pool.upper().replace("-", "_")]
    changed = Pool.EXTERNAL if pool is None else pool
    if request.key is None:
        if request.value is not None or request.delete:
            raise Denied("bad_line", "key: missing")
    elif request.delete:
        if not await vm.kvp.delete(request.key, changed):
            raise Denied("refused", f'{vm.name} has no "{request.key}" in pool {pool_name(changed)}')
        return []
    elif request.value is not None:
        await vm.kvp.set(request.key, request.value, changed)
        return [_item(vm, changed, request.key, request.value)]
    found = [
        _item(vm, each, key, value)
        for each in (Pool if pool is None else (pool,))
        for key, value in (await vm.kvp.items(each)).items()
        if request.key in (None, key)
    ]
    if request.key is not None and not found:
        where = "any pool" if pool is None else f"pool {pool_name(pool)}"
        raise Denied("refused", f'{vm.name} has no "{request.key}" in {where}')
    return found


def _item(vm: Vm, pool: Pool, key: str, value: str | int) -> dict[str, Any]:
    return {"vm": vm.name, "pool": pool_name(pool), "key": key, "value": value}


def _row(vm: Vm) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(figures_of(vm))
