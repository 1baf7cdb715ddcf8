"""The ViTs of timm that a classifier can be built on.

Enters: a name of timm. Leaves: a backbone whose tokens points can join. Start with `create`; `kinds` decides which
models are accepted, `tokens` and `rotary` where points come in.
"""
