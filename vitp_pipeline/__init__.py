"""Mask generators and the point classifier that names their masks."""
