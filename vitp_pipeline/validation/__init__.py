"""Declare and check the tables of TOML files: keys with type, range, unit and meaning. Start with `tables`."""
