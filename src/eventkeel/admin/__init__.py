"""What operators may ask of a running system, and do to it: the one way in for every surface (so far: commands)."""
