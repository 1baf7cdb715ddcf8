"""Declaration of tables of TOML files: every key with type, range, unit and meaning; one line for what cannot be.

In: a class whose fields are annotated with a `Key` and its limits, and values as TOML has them. Out: a frozen
instance, or a UsageError; JSON Schema. Knows no table itself: those of a recipe are in `config/`, of a manifest in
`datasets/`, of a profile in `cluster/`.

Open `tables.py` first: `table` makes such a class, `checked` an instance. `constraints.py` has the limits.
"""
