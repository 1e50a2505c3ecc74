"""SCSI by itself: disks that answer CDBs, whoever carries them. VMBus does not occur here. Both sides."""
