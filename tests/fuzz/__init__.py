"""Fuzzing: what comes from outside meets any bytes, and each byte is accounted for.

`targets` says what is tried and what must hold, `python -m tests.fuzz` runs a target under atheris for as long as
asked, and `test_targets` runs each of them with hypothesis in every ordinary run of the tests.
"""
