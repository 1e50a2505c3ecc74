"""The guest's end of VMBus: it connects, learns what is offered, and opens channels. Child side.

`state.py` is the protocol: host messages in, messages and events out, no Trio, no clock, no memory. `service.py` feeds
it and gives drivers calls to await. `platform.py` is all that it needs from the guest's kernel.
"""
