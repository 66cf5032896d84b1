"""The training engine: loop, settings, devices, checkpoints and logs."""
