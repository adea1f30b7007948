// Sends orders to Kafka as a widespread tutorial does: kafka.Writer with LeastBytes, key = order id, no headers,
// plain JSON. LeastBytes looks at sizes only: an order that is sent twice lies on two partitions.
//
//	produce [-broker HOST:PORT] [-topic TOPIC] [-prefix ORD] [-orders N] [-twice]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"

	"github.com/segmentio/kafka-go"
)

type OrderEvent struct {
	OrderID string  `json:"order_id"`
	UserID  string  `json:"user_id"`
	Amount  float64 `json:"amount"`
}

func main() {
	broker := flag.String("broker", "localhost:9092", "address of a Kafka broker")
	topic := flag.String("topic", "order_events", "topic to write to")
	prefix := flag.String("prefix", "ORD", "what order ids begin with")
	orders := flag.Int("orders", 1, "how many orders to send")
	twice := flag.Bool("twice", false, "send every order twice")
	flag.Parse()

	writer := &kafka.Writer{
		Addr:     kafka.TCP(*broker),
		Topic:    *topic,
		Balancer: &kafka.LeastBytes{},
	}

	copies := 1
	if *twice {
		copies = 2
	}
	var messages []kafka.Message
	for number := 1; number <= *orders; number++ {
		event := OrderEvent{
			OrderID: fmt.Sprintf("%s%d", *prefix, number),
			UserID:  fmt.Sprintf("USR%d", number%7),
			Amount:  float64(9999+100*number) / 100,
		}
		body, err := json.Marshal(event)
		if err != nil {
			log.Fatal(err)
		}
		for copy := 0; copy < copies; copy++ {
			messages = append(messages, kafka.Message{Key: []byte(event.OrderID), Value: body})
		}
	}
	if err := writer.WriteMessages(context.Background(), messages...); err != nil {
		log.Fatal("failed to write messages: ", err)
	}
	if err := writer.Close(); err != nil {
		log.Fatal("failed to close writer: ", err)
	}
	fmt.Printf("sent %d orders\n", len(messages))
}
