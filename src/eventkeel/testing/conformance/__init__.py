"""One suite for every broker and every store: yours, too.

``TransportSuite`` (a broker by itself), ``StoreSuite`` (a database by itself) and ``ServiceSuite`` (both, under the
real engine) are subclassed and bound; ``plugin`` notes what held, ``page`` writes it down, ``catalogue`` is the list of
what has to hold. How to: docs/howto/plugins.md.
"""

REWRITTEN = tuple(
    f"eventkeel.testing.{name}"
    for name in (
        *("transport_suite", "transport_crowds", "transport_kit"),
        *("store_suite", "store_keys", "store_later", "store_kit"),
        *("conformance.kit", "conformance.flow", "conformance.order", "conformance.members", "conformance.trouble"),
        "conformance.restarts",
    )
)
"""Modules whose failing asserts show their values once pytest was told: ``pytest.register_assert_rewrite(*REWRITTEN)``
in a conftest.py."""
