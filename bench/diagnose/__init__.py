"""Advise on a method: profile the beginning of a user's own training, apply a rule fixed beforehand, and judge it."""
