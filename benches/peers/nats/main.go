// Command nats runs the workloads on NATS JetStream: a work-queue stream, one durable pull consumer, explicit
// acknowledgements.
package main

import (
	"context"
	"errors"
	"flag"
	"time"

	"bananas/benches/peers/load"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	streamName   = "JOBS"
	consumerName = "workers"
	subject      = "jobs.bench"
)

var (
	storage    = flag.String("storage", "file", "where the stream is kept: file or memory")
	maxPending = flag.Int("max-pending", 4000, "produce-bulk: publishes that are not acknowledged yet")
	pull       = flag.Int("pull", 500, "messages that the consumer keeps ready in the client")
)

type queue struct {
	stream   jetstream.JetStream
	consumer jetstream.Consumer
}

func main() { load.Main(open) }

func open(ctx context.Context) (load.Queue, error) {
	connection, err := nats.Connect("nats://" + *load.Address)
	if err != nil {
		return nil, err
	}
	stream, err := jetstream.New(connection, jetstream.WithPublishAsyncMaxPending(*maxPending))
	if err != nil {
		return nil, err
	}
	config := jetstream.StreamConfig{
		Name:      streamName,
		Subjects:  []string{"jobs.>"},
		Retention: jetstream.WorkQueuePolicy,
		Storage:   jetstream.FileStorage,
	}
	if *storage == "memory" {
		config.Storage = jetstream.MemoryStorage
	}
	if _, err := stream.CreateStream(ctx, config); err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil, err
	}
	consumer, err := stream.CreateOrUpdateConsumer(ctx, streamName, jetstream.ConsumerConfig{
		Durable:   consumerName,
		AckPolicy: jetstream.AckExplicitPolicy,
		// Above the number of messages in the client: the default of 1,000 would limit the pulls.
		MaxAckPending: 20_000,
	})
	return &queue{stream: stream, consumer: consumer}, err
}

func (q *queue) EnqueueAll(_ context.Context, n int, payload []byte) error {
	acks := make([]jetstream.PubAckFuture, 0, n)
	for range n {
		ack, err := q.stream.PublishAsync(subject, payload)
		if err != nil {
			return err
		}
		acks = append(acks, ack)
	}
	<-q.stream.PublishAsyncComplete()
	for _, ack := range acks {
		select {
		case err := <-ack.Err():
			return err
		default:
		}
	}
	return nil
}

func (q *queue) Enqueue(ctx context.Context, payload []byte) error {
	_, err := q.stream.Publish(ctx, subject, payload)
	return err
}

// Work handles messages in this many goroutines or, if that is one, in the callback of the consumer.
func (q *queue) Work(_ context.Context, concurrency int, handle func([]byte)) error {
	settle := func(message jetstream.Msg) {
		handle(message.Data())
		_ = message.Ack()
	}
	arrived := settle
	if concurrency > 1 {
		messages := make(chan jetstream.Msg)
		for range concurrency {
			go func() {
				for message := range messages {
					settle(message)
				}
			}()
		}
		arrived = func(message jetstream.Msg) { messages <- message }
	}
	_, err := q.consumer.Consume(arrived, jetstream.PullMaxMessages(*pull))
	return err
}

func (q *queue) Empty(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := q.consumer.Info(ctx)
	if err != nil {
		return false, err
	}
	return info.NumPending == 0 && info.NumAckPending == 0, nil
}
