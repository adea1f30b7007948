"""Crash runs: real processes, killed and stopped, and then counted."""
