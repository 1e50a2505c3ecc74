"""The synthetic mouse: a HID device with an absolute pointer, its reports from the host to a guest. Both sides."""
