"""Synthetic network: NVSP and RNDIS over VMBus, and the virtual switch that joins adapters. Both sides."""
