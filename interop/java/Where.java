import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Where Java's Kafka client puts keys, and what it reads. Keys and bodies are in Base64, one per line.
 *
 * <pre>
 *   Where partitions COUNT < keys             the partition that the partitioner computes for each key
 *   Where produce BROKER TOPIC < keys         sends a message with each key; the partition where each lies
 *   Where consume BROKER TOPIC                everything on the topic: partition, key, body, headers, tab between
 * </pre>
 */
public class Where {
    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "partitions" -> partitions(Integer.parseInt(arguments[1]));
            case "produce" -> produce(arguments[1], arguments[2]);
            case "consume" -> consume(arguments[1], arguments[2]);
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }

    private static List<byte[]> keys() throws Exception {
        List<byte[]> keys = new ArrayList<>();
        for (String line : new String(System.in.readAllBytes(), StandardCharsets.US_ASCII).split("\n", -1)) {
            keys.add(Base64.getDecoder().decode(line));
        }
        return keys;
    }

    private static void partitions(int count) throws Exception {
        for (byte[] key : keys()) {
            System.out.println(BuiltInPartitioner.partitionForKey(key, count));
        }
    }

    private static void produce(String broker, String topic) throws Exception {
        Map<String, Object> settings = Map.of("bootstrap.servers", broker);
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (byte[] key : keys()) {
                sent.add(producer.send(new ProducerRecord<>(topic, key, key)));
            }
            for (Future<RecordMetadata> each : sent) {
                System.out.println(each.get().partition());
            }
        }
    }

    private static void consume(String broker, String topic) {
        Map<String, Object> settings = Map.of("bootstrap.servers", broker, "enable.auto.commit", "false");
        try (var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> all = new ArrayList<>();
            consumer.partitionsFor(topic).forEach(each -> all.add(new TopicPartition(topic, each.partition())));
            consumer.assign(all);
            consumer.seekToBeginning(all);
            Map<TopicPartition, Long> ends = consumer.endOffsets(all);
            while (ends.entrySet().stream().anyMatch(end -> consumer.position(end.getKey()) < end.getValue())) {
                for (var record : consumer.poll(Duration.ofMillis(200))) {
                    StringBuilder line = new StringBuilder();
                    line.append(record.partition()).append('\t').append(base64(record.key()));
                    line.append('\t').append(base64(record.value()));
                    for (Header header : record.headers()) {
                        line.append('\t').append(header.key()).append('=').append(base64(header.value()));
                    }
                    System.out.println(line);
                }
            }
        }
    }

    private static String base64(byte[] bytes) {
        return bytes == null ? "null" : Base64.getEncoder().encodeToString(bytes);
    }
}
