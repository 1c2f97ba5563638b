"""Timings, and the report card. Never part of the tests: a machine that is busy must not fail them."""
