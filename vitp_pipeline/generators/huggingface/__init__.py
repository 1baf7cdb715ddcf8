"""Adapt models of transformers, and convert detectron2's files for them. Start with `adapter`."""
