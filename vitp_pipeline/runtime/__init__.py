"""What a process is to its surroundings: what it prints, the signals that it gets, how it ends.

`escaping` makes text safe to print, `output` is the only door through which text leaves, `tables` the same for tables.
Nothing here knows of runs, datasets or models. Open `output.py` first.
"""
