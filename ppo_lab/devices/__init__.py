"""Where tensors live, and what is measured of a device: memory, PCIe transfers, time."""
