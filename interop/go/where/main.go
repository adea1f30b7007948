// Says in which partition kafka-go's Murmur2Balancer puts keys.
//
//	where PARTITIONS < one key in Base64 per line
package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"log"
	"os"
	"strconv"

	"github.com/segmentio/kafka-go"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: where PARTITIONS < keys")
	}
	count, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	partitions := make([]int, count)
	for index := range partitions {
		partitions[index] = index
	}
	balancer := kafka.Murmur2Balancer{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		key, err := base64.StdEncoding.DecodeString(lines.Text())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(balancer.Balance(kafka.Message{Key: key}, partitions...))
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
