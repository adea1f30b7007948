"""For pytest: ``-p tests.mutants.plugin`` applies the mutant named by ``EVENTKEEL_TEST_MUTANT``."""

from __future__ import annotations

import os

from tests.mutants import patches

if name := os.environ.get("EVENTKEEL_TEST_MUTANT"):
    getattr(patches, name)()
