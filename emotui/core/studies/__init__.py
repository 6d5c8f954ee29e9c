"""Dataset-level analyses, one file each."""
