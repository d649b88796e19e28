"""Measuring: bytes, seconds and samples of this package's own work."""
