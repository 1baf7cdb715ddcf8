"""Provide operators and backbones in plain torch where no compiled ones are installed."""
