"""The panes of the explorer, one file each."""
