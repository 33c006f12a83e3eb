"""The instruments: agreement, speed, complexity and the report. `python -m study --help` lists them."""
