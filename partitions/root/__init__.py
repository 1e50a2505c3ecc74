"""The software of the root partition: VMMS, one worker a running VM, VID and WinHv. Root side."""
