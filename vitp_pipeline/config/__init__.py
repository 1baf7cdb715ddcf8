"""Describe what to run: recipes, their settings, and the values these may have.

Enters: TOML and flags. Leaves: frozen settings, one class per stage table. Start with `recipe`.
"""
