"""Apache Kafka (or what speaks its protocol), through confluent-kafka."""

from __future__ import annotations

from eventkeel.errors import ConfigurationError

try:
    import confluent_kafka as confluent_kafka
except ImportError as error:
    raise ConfigurationError("kafka:// needs confluent-kafka: pip install 'eventkeel[kafka]'") from error

from eventkeel.transports.kafka.transport import KafkaTransport as KafkaTransport

__all__ = ["KafkaTransport"]
