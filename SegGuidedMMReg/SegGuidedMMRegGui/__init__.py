"""What the module shows and does in Slicer: a panel a step, the jobs, the bridge to the scene.

Computes nothing itself: jobs run in child processes (`python -m SegGuidedMMRegLib`). Of the library only
floors 0 to 2 are imported here, and at file scope nothing but Slicer's own.
"""
