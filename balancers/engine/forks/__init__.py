"""The fork of a trunk into heads, where the tasks' gradients are told apart, and checks that each loss keeps to it.

It knows no method: whatever reads a fork is an `Observer`.
"""
