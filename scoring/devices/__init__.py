"""Devices: component bundles to stable ids, tampering scores and numbers for features and rules."""

from scoring.devices.linker import NUMBERS, DeviceColumns, DeviceLinker, DeviceRefusal

__all__ = ["NUMBERS", "DeviceColumns", "DeviceLinker", "DeviceRefusal"]
