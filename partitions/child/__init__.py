"""The software in a child partition: a small kernel, its drivers' glue and the programs it runs. Child side.

Start reading in `kernel.py`, the boot order as one list. A guest program sees `guest.Guest` and nothing below it,
unless it asks.
"""
