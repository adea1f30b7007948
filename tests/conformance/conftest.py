import pytest

from eventkeel.testing.conformance import REWRITTEN

# The suite is a shipped module, not a test file: without this its failing asserts say nothing.
pytest.register_assert_rewrite(*REWRITTEN)
