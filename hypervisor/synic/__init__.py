"""The synthetic interrupt controller: messages, event flags, ports and connections. Both sides."""
