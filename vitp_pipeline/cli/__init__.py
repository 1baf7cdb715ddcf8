"""The command line: a module per command that parses, calls one function and prints. Start with `main`."""
