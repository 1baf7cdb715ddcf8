"""Look after run directories: what is done (`status`), whether it is whole (`verify`), what may go (`gc`).

Enters: a run's folder. Leaves: reports; `repair` and `gc` also remove files. Start with `status`.
"""
