"""Keep files safe, in a folder or on an object store.

Enters: bytes and JSON with a path. Leaves: files that are whole or absent, locks that one task holds, digests. Knows
nothing of what the files mean. Start with `atomic_files`; every change to a disk is a step in `fs_ops`.
"""
