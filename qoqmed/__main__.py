"""`python -m qoqmed`: the same as the command `qoqmed`."""

from qoqmed.cli import main

main()
