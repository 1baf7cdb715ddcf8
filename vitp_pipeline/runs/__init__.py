"""Maintain run directories: progress (`status`), integrity (`verify`), stale files (`gc`).

Enters: a run's folder. Leaves: reports; `repair` and `gc` also remove files. Start with `status`.
"""
