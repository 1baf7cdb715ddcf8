"""Configuration of a run: the tables of a recipe, each a frozen class whose fields carry type, range, unit and meaning.

In: a TOML file, flags and `--set KEY=VALUE`. Out: checked settings, or one line that says which value cannot be and
what it takes. The same declarations give the JSON Schema of `vitp schema`, the keys in `vitp STAGE --help` and
docs/settings.md.

Open `recipe.py` first; then a table: `generate_proposals.py`, `train_classifier.py`, `classify.py`, `evaluate.py`.
What fields are declared with is in `vitp_pipeline/validation/`.
"""
