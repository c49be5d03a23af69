"""SegGuidedMMReg: segmentations of two modalities and fold-free transforms from a few labels of one.

Importing this package imports nothing heavy: take what you need from its modules.
"""

__version__ = "0.1.0"
