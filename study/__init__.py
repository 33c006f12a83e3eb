"""Instruments: agreement, speed, complexity, the report. `python -m study --help` lists them."""
