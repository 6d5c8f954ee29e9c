"""The subcommands of `emotui`, one file each; `cli.py` lists them."""
