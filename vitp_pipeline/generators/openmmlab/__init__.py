"""Adapt models of mmsegmentation and mmdetection. Start with `adapter`."""
