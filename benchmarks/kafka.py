"""The reference job on Kafka and PostgreSQL: Eventkeel, the native twin and FastStream, alternately, in one run.

One event in, one business row, one event out, each once; one process each, relay included. Every variant runs in a
process, topics and tables of its own. Every run counts its rows; a run with a row missing ends the benchmark.

    python -m benchmarks.kafka [--broker kafka://… --store postgresql://…] [--messages N] [--runs N] [--only WORD]
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from benchmarks import kafka_twin
from benchmarks.comparison import BATCH, LANES, Comparison, Demand, Job, Variant, eventkeel, many, some
from benchmarks.job import Run
from benchmarks.postgres_twin import Style
from benchmarks.servers import Place
from benchmarks.where import Sampler


def _twin(style: Style, batch: int) -> Job:
    return lambda here, _: kafka_twin.Twin(here, style, batch, LANES).run()


def _peer(kind: Any) -> Job:
    def run(here: Place, _: Sampler | None) -> Coroutine[Any, Any, Run]:
        from benchmarks.kafka_peer import KafkaPeer  # FastStream and SQLAlchemy: only where they run

        return KafkaPeer(here, kind).run()

    return run


DEFERRED, BULK, AWAITED = "twin, deferred", "twin, bulk", "twin, one by one"
OURS, OURS_500, OURS_BULK, OURS_ONE = (
    "Eventkeel",
    "Eventkeel, batches of 500",
    "Eventkeel, batch handler",
    "Eventkeel, one by one",
)
BARE, DRIVER, MODELS, PEER_BULK = (
    "FastStream, empty",
    "FastStream + driver",
    "FastStream + SQLAlchemy",
    "FastStream, batch=True",
)
VARIANTS = (
    Variant(DEFERRED, _twin("deferred", BATCH), many),
    eventkeel(OURS_500, "payments", 1, batch_size=BATCH, looked_at=True),
    eventkeel(OURS, "payments", 1),
    Variant(BULK, _twin("bulk", BATCH), many),
    eventkeel(OURS_BULK, "bulk", 1, batch_size=BATCH, looked_at=True),
    Variant(PEER_BULK, _peer("bulk"), many),
    Variant(BARE, _peer("bare"), some(0.2), inbox=""),
    Variant(AWAITED, _twin("awaited", 1), some(0.1)),
    eventkeel(OURS_ONE, "payments", 0.1, batch_size=1, looked_at=True),
    Variant(DRIVER, _peer("driver"), some(0.08)),
    Variant(MODELS, _peer("sqlalchemy"), some(0.04)),
)


DEMANDS = (
    Demand((OURS_500, OURS), 0.5, DEFERRED),
    Demand((OURS_500, OURS), 35, MODELS),
    Demand((OURS_500, OURS), 20, DRIVER),
    Demand((OURS_500, OURS), 1, BARE),
    Demand((OURS_ONE,), 1.2, DRIVER),
    Demand((OURS_BULK,), 0.6, BULK),
    Demand((OURS_BULK,), 1.6, PEER_BULK),
)
COMPARISON = Comparison("benchmarks.kafka", "kafka", VARIANTS, DEMANDS)

if __name__ == "__main__":
    COMPARISON.main(__doc__, "kafka://host:port")
