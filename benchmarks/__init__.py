"""Runs, records, reports."""
