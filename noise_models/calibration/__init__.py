"""Calibration of a device: from exposures to the noise that may be counted on."""
