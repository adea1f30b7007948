"""RabbitMQ, through AMQP 0-9-1."""

from __future__ import annotations

from eventkeel.errors import ConfigurationError

try:
    import pamqp as pamqp
except ImportError as error:
    raise ConfigurationError("amqp:// needs pamqp: pip install 'eventkeel[rabbitmq]'") from error

from eventkeel.transports.rabbitmq.transport import RabbitTransport as RabbitTransport
from eventkeel.transports.rabbitmq.transport import secure as secure

__all__ = ["RabbitTransport", "secure"]
