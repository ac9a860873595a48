"""Learns encoders."""
