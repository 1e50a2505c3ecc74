"""Tests of `vsp_vsc.memory`."""
