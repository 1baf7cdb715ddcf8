"""Serve every command: progress and messages, signals, devices, several processes.

Enters: what a stage wants to say or to know about this process. Leaves: lines on the terminal, a device, a place among
processes. Knows nothing of runs, datasets or models. Start with `progress`.
"""
