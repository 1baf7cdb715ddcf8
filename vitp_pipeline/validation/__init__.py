"""Declare and validate the tables of TOML files: keys with type, range, unit and help. Start with `tables`."""
