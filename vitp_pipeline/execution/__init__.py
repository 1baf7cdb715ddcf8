"""Run a stage over shards and parts so that it can be killed and resumed.

Enters: a stage's run and a maker of parts. Leaves: committed parts and an outcome. Start with `runner`; `sharding` says
whose images are whose, `prefetch` reads ahead and writes behind.
"""
