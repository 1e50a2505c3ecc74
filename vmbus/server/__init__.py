"""The host's end of VMBus: it offers devices to one child partition and runs them. Root side.

`state.py` is the protocol: guest messages in, actions out, no Trio, no clock, no memory. `service.py` feeds it and does
what it says, with `slots.py` for what has rings and tasks. `ports.py` is all that they need from the hypervisor.
"""
