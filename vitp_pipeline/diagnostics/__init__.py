"""Answer questions before a run: is the dataset sound, what will it cost, what is installed.

Enters: a recipe and a data root. Leaves: reports for people and for JSON. Start with `check_dataset`, which reads every
file (`check_files`) and draws some (`contact_sheet`); `model_cost` counts operations, `environment` lists versions.
"""
