"""Decode untrusted files of other programs.

Enters: JSON, archives, arrays, run lengths, pickles and torch files of any content. Leaves: checked arrays and
numbers of bounded size, or an InputError that names the record. Nothing is executed. Start with `records`.
"""
