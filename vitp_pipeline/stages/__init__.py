"""The pipeline: one module per stage command.

`generate_proposals` → `train_classifier` → `classify` → `evaluate`, and `import_proposals`, `export_results` beside
them; `stream` runs the first, third and fourth together, `pipeline` all four in turn. Each prepares a run, then hands
a maker of parts to `execution.runner`.
"""
