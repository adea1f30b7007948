"""The reference job on RabbitMQ and PostgreSQL: Eventkeel, the native twin and FastStream, alternately, in one run.

One event in, one business row, one event out, each once; one process each, relay included. The twin runs on the same
topology as Eventkeel (topic exchange, hash exchange, shard queues, history stream), and on plain queues. Every variant
runs in a process, topics and tables of its own. Every run counts its rows; a run with a row missing ends the benchmark.

    python -m benchmarks.rabbitmq [--broker amqp://… --store postgresql://…] [--messages N] [--runs N] [--only WORD]
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from benchmarks import rabbitmq_twin
from benchmarks.comparison import BATCH, LANES, Comparison, Demand, Job, Variant, eventkeel, many, some
from benchmarks.job import Run
from benchmarks.servers import Place
from benchmarks.where import Sampler


def _twin() -> Job:
    return lambda here, _: rabbitmq_twin.Twin(here, "deferred", BATCH, LANES).run()


def _peer(kind: Any) -> Job:
    def run(here: Place, _: Sampler | None) -> Coroutine[Any, Any, Run]:
        from benchmarks.rabbitmq_peer import RabbitPeer  # FastStream and SQLAlchemy: only where they run

        return RabbitPeer(here, kind).run()

    return run


TWIN, PLAIN = "twin, same topology", "twin, plain queues"
OURS, OURS_500 = "Eventkeel", "Eventkeel, batches of 500"
BARE, DRIVER, MODELS = "FastStream, empty", "FastStream + driver", "FastStream + SQLAlchemy"
VARIANTS = (
    Variant(TWIN, _twin(), many),
    eventkeel(OURS_500, "payments", 1, batch_size=BATCH, looked_at=True),
    eventkeel(OURS, "payments", 1),
    Variant(PLAIN, _twin(), many, layout="plain"),
    Variant(BARE, _peer("bare"), some(0.5), inbox="", layout="peer"),
    Variant(DRIVER, _peer("driver"), some(0.1), layout="peer"),
    Variant(MODELS, _peer("sqlalchemy"), some(0.05), layout="peer"),
)
DEMANDS = (
    Demand((OURS_500, OURS), 0.5, TWIN),
    Demand((OURS_500, OURS), 15, MODELS),
    Demand((OURS_500, OURS), 8, DRIVER),
    Demand((OURS_500, OURS), 1, BARE),
)
COMPARISON = Comparison("benchmarks.rabbitmq", "rabbitmq", VARIANTS, DEMANDS)

if __name__ == "__main__":
    COMPARISON.main(__doc__, "amqp://user:password@host:port")
