"""Masks that other tools made, as proposals."""
