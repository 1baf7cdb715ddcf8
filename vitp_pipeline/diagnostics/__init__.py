"""Check before a run: the dataset, the cost of the models, the installation.

Enters: a recipe and a data root. Leaves: reports for people and for JSON. Start with `check_dataset`, which reads every
file (`check_files`) and draws some (`contact_sheet`); `model_cost` counts operations, `environment` lists versions.
"""
