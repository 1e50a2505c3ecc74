"""The storage pair: a SCSI controller over VMBus, its protocol, its disks and where their bytes rest. Both sides."""
