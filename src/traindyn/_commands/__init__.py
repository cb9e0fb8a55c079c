"""The commands that take long to import, a file each."""
