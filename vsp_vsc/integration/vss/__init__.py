"""Volume snapshots: a guest's file systems stand still while a backup is taken. Both sides."""
