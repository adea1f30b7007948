"""One suite for every broker and every store: yours, too.

``TransportSuite`` (a broker by itself), ``StoreSuite`` (a database by itself) and ``ServiceSuite`` (both, under the
real engine) are subclassed and bound; ``plugin`` notes what held, ``page`` writes it down, ``catalogue`` is the list of
what has to hold. How to: docs/howto/plugins.md.
"""
