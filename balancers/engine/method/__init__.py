"""The parts of a method: its options, its state, what its functions read and return, and how they are called.

It does not know when they are called, nor backward passes.
"""
