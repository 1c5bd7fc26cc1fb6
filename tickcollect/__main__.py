"""`python -m tickcollect`: the same as the command `tickcollect`."""

from tickcollect.cli import main

main(prog_name="tickcollect")
