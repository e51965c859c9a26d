"""`python -m omnibus.cli`: the same as `omnibus`."""

from omnibus.cli import main

main()
