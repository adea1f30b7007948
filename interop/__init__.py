"""Programs of other people's making, which share topics with Eventkeel in tests/interop."""
