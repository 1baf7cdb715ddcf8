"""Rules of [evaluate], beside the sum, for the mask that a pixel belongs to among several.

Class-agnostic masks nest: a wheel in a car in a street. Here masks are opaque and lie on each other in an order; a
pixel belongs to the topmost mask that covers it. `stack` has the order and the painting, `maps` makes semantic maps
and the competition of panoptic maps from it. Pure functions on arrays.
"""
