"""Dynamic memory: a guest's memory taken and given while it runs. Both sides."""
