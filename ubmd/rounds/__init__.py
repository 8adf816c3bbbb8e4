"""The rounds of active learning: fit, calibrate, explore, select, label."""
