"""Robots: one interface for the simulated arm, a remote one and the physical one.

`interface.py` says what a robot is; `safety.py` wraps every one of them.
"""
