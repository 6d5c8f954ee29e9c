"""`python -m emotui`."""

from emotui.cli import main

main()
