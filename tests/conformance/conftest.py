import pytest

# The suite is a shipped module, not a test file: without this its failing asserts say nothing.
pytest.register_assert_rewrite("eventkeel.testing.conformance")
