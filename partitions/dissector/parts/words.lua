-- Numbers that have names: interfaces, versions, statuses.

return function(vmbus)
    local words = {}

    -- Interfaces by their bytes on the wire, which have the first three groups of a GUID's text in little-endian.
    words.interfaces = {}
    local function interface(text, name)
        local a, b, c, d, e = text:match("(%x+)-(%x+)-(%x+)-(%x+)-(%x+)")
        local function turned(group)
            local bytes = ""
            for byte in group:gmatch("..") do
                bytes = byte .. bytes
            end
            return bytes
        end
        words.interfaces[(turned(a) .. turned(b) .. turned(c) .. d .. e):upper()] = name
    end
    interface("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f", "storage")
    interface("32412632-86cb-44a2-9b5c-50d1417354f5", "IDE storage")
    interface("2f9bcc4a-0069-4af3-b76b-6fd0be528cda", "Fibre Channel storage")
    interface("f8615163-df3e-46c5-913f-f2d2f965ed0e", "network")
    interface("8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501", "network direct")
    interface("57164f39-9115-4e78-ab55-382f3bd5422d", "heartbeat")
    interface("0e0b6031-5213-4934-818b-38d90ced39db", "shutdown")
    interface("9527e630-d0ae-497b-adce-e80ab0175caf", "time sync")
    interface("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6", "KVP")
    interface("35fa2e29-ea23-4236-96ae-3a6ebacba440", "VSS")
    interface("34d14be3-dee4-41c8-9ae7-6b174977c192", "file copy")
    interface("f912ad6d-2b17-48ea-bd65-f927a61c7684", "keyboard")
    interface("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a", "mouse")
    interface("da0a7802-e377-4aac-8e77-0558eb1073f8", "video")
    interface("525074dc-8985-46e2-8057-a307dc18a502", "dynamic memory")
    interface("44c4f61d-4444-4400-9d52-802e27ede19f", "PCI pass-through")
    interface("276aacf4-ac15-426c-98dd-7521ad3f01fe", "remote desktop")
    interface("f8e65716-3cb3-4a06-9a60-1889c5cccab5", "activation")
    interface("3375baf4-9e15-4b30-b765-67acb10d607b", "activation")
    interface("c376c1c3-d276-48d2-90a9-c04748072c60", "boot files")
    interface("8b60ccf6-709f-4c11-90b5-229c959a9e6a", "serial")
    interface("8dedd1aa-9056-49e4-bfd6-1bf90dc38ef0", "guest emulation")
    interface("427b03e7-4ceb-4286-b5fc-486f4a1dd439", "crash dump")

    -- A Hyper-V socket's port stands in the first group of its service's GUID.
    function words.socket(service)
        local d, c, b, a = service:upper():match("^(%x%x)(%x%x)(%x%x)(%x%x)CBFAE611BD5864006A7986D3$")
        return d and string.format("socket port %d", tonumber(a .. b .. c .. d, 16))
    end

    words.devices = {
        [0] = "unknown",
        [1] = "storage",
        [2] = "network",
        [3] = "heartbeat",
        [4] = "shutdown",
        [5] = "time-sync",
        [6] = "kvp",
        [7] = "vss",
        [8] = "file-copy",
        [9] = "keyboard",
        [10] = "mouse",
        [11] = "dynamic-memory",
        [12] = "video",
        [13] = "ide",
        [14] = "hv-socket",
        [255] = "device of its own",
    }

    words.messages = {
        "OFFER_CHANNEL",
        "RESCIND_CHANNEL_OFFER",
        "REQUEST_OFFERS",
        "ALL_OFFERS_DELIVERED",
        "OPEN_CHANNEL",
        "OPEN_CHANNEL_RESULT",
        "CLOSE_CHANNEL",
        "GPADL_HEADER",
        "GPADL_BODY",
        "GPADL_CREATED",
        "GPADL_TEARDOWN",
        "GPADL_TORNDOWN",
        "REL_ID_RELEASED",
        "INITIATE_CONTACT",
        "VERSION_RESPONSE",
        "UNLOAD",
        "UNLOAD_COMPLETE",
        "OPEN_RESERVED_CHANNEL",
        "CLOSE_RESERVED_CHANNEL",
        "CLOSE_RESERVED_RESPONSE",
        "TL_CONNECT_REQUEST",
        "MODIFY_CHANNEL",
        "TL_CONNECT_RESULT",
        "MODIFY_CHANNEL_RESPONSE",
        "MODIFY_CONNECTION",
        "MODIFY_CONNECTION_RESPONSE",
        "PAUSE",
        "PAUSE_RESPONSE",
        "RESUME",
    }

    words.versions = {
        [0x00000] = "none yet",
        [0x0000D] = "0.13, Windows Server 2008",
        [0x10001] = "1.1, Windows 7",
        [0x20004] = "2.4, Windows 8",
        [0x30000] = "3.0, Windows 8.1",
        [0x40000] = "4.0, Windows 10",
        [0x40001] = "4.1, Windows 10 RS3",
        [0x50000] = "5.0, Windows 10 RS3",
        [0x50001] = "5.1, Windows 10 RS4",
        [0x50002] = "5.2, Windows 10 RS5",
        [0x50003] = "5.3, Windows Server 2022",
        [0x60000] = "6.0, Copper",
    }
    function words.version(number)
        return string.format("%d.%d", math.floor(number / 65536), number % 65536)
    end

    words.channel_statuses = {
        [0x00000000] = "success",
        [0x8000FFFF] = "failure",
        [0xC0000236] = "connection refused",
    }
    words.connection_states = { [0] = "successful", [1] = "low resources", [2] = "unknown failure" }
    words.yes_no = { [0] = "no", [1] = "yes" }
    words.target_vps = { [0xFFFFFFFF] = "none, interrupts are off" }

    words.nt_statuses = {
        [0x00000000] = "SUCCESS",
        [0x80000005] = "BUFFER_OVERFLOW",
        [0x80000011] = "DEVICE_BUSY",
        [0xC0000001] = "UNSUCCESSFUL",
        [0xC000000D] = "INVALID_PARAMETER",
        [0xC0000010] = "INVALID_DEVICE_REQUEST",
        [0xC0000059] = "REVISION_MISMATCH",
        [0xC000009A] = "INSUFFICIENT_RESOURCES",
        [0xC000009D] = "DEVICE_NOT_CONNECTED",
        [0xC00000B5] = "IO_TIMEOUT",
        [0xC00000C0] = "DEVICE_DOES_NOT_EXIST",
        [0xC0000120] = "CANCELLED",
        [0xC0000184] = "INVALID_DEVICE_STATE",
        [0xC0000185] = "IO_DEVICE_ERROR",
    }

    function words.of(table, number)
        return table[number] or string.format("%#x", number)
    end

    vmbus.words = words
end
