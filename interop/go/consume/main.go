// Reads orders from Kafka as a widespread tutorial does: kafka.Reader with a group of its own, encoding/json into
// a struct of three fields. One line of JSON for each message; what is no order is {"malformed": "..."}.
//
//	consume [-broker HOST:PORT] [-topic TOPIC] [-group GROUP]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/segmentio/kafka-go"
)

type OrderEvent struct {
	OrderID string  `json:"order_id"`
	UserID  string  `json:"user_id"`
	Amount  float64 `json:"amount"`
}

func main() {
	broker := flag.String("broker", "localhost:9092", "address of a Kafka broker")
	topic := flag.String("topic", "order_events", "topic to read")
	group := flag.String("group", "analytics-service-group", "consumer group")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers:  []string{*broker},
		GroupID:  *group,
		Topic:    *topic,
		MinBytes: 1, // the tutorial's 10e3 makes a reader of a quiet topic wait for ten seconds
		MaxBytes: 10e6,
	})
	defer reader.Close()

	lines := json.NewEncoder(os.Stdout)
	for {
		message, err := reader.ReadMessage(ctx)
		if errors.Is(err, context.Canceled) {
			return
		}
		if err != nil {
			log.Fatal("failed to read a message: ", err)
		}
		var event OrderEvent
		if err := json.Unmarshal(message.Value, &event); err != nil {
			lines.Encode(map[string]string{"malformed": string(message.Value)})
			continue
		}
		lines.Encode(event)
	}
}
