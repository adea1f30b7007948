"""Wrong variants of the engine, made by patching it from here. A check that misses one proves nothing."""
