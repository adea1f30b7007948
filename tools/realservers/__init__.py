"""Real servers for tests and measurements: Kafka, PostgreSQL and RabbitMQ, to be killed, paused and restarted.

Standard library only: ``tools/servers`` runs it before there is a virtual environment.

```
with Servers.temporary() as servers:
    servers.up("kafka", "postgres")
    servers.kafka.kill9()
    servers.kafka.start()  # same port, same data; returns when it answers
    servers.url("kafka")
```
"""

from tools.realservers.errors import ServersError
from tools.realservers.fleet import FOREIGN, KINDS, Servers, exports, foreign
from tools.realservers.server import Server

__all__ = ["FOREIGN", "KINDS", "Server", "Servers", "ServersError", "exports", "foreign"]
