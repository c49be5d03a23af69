"""The commands of `segmmreg`: a frozen dataclass each, whose fields are its options and whose `run` does it.

All inherit `base.Command`. Nothing heavy is imported here: what a command needs, its `run` imports.
"""
