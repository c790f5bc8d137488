// Command asynq runs the workloads on asynq.
package main

import (
	"context"
	"flag"
	"time"

	"bananas/benches/peers/load"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/errgroup"
)

const (
	queueName = "default"
	taskType  = "bench"
)

var checkInterval = flag.Duration("check-interval", 10*time.Millisecond, "how often an idle worker polls")

type queue struct {
	redis     asynq.RedisClientOpt
	client    *asynq.Client
	inspector *asynq.Inspector
}

func main() {
	load.Main(func(context.Context) (load.Queue, error) {
		// One connection per call in flight. With the default, ten per core, callers would wait for connections.
		redis := asynq.RedisClientOpt{Addr: *load.Address, PoolSize: max(*load.InFlight, *load.Concurrency) + 10}
		client := asynq.NewClient(redis)
		return &queue{redis: redis, client: client, inspector: asynq.NewInspector(redis)}, client.Ping()
	})
}

// EnqueueAll uses goroutines, because asynq has no bulk call.
func (q *queue) EnqueueAll(ctx context.Context, n int, payload []byte) error {
	var group errgroup.Group
	for i := range *load.InFlight {
		group.Go(func() error {
			for range share(n, *load.InFlight, i) {
				if err := q.Enqueue(ctx, payload); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// share is the size of the i-th of nearly equal parts of n.
func share(n, parts, i int) int { return n*(i+1)/parts - n*i/parts }

func (q *queue) Enqueue(ctx context.Context, payload []byte) error {
	_, err := q.client.EnqueueContext(ctx, asynq.NewTask(taskType, payload))
	return err
}

func (q *queue) Work(_ context.Context, concurrency int, handle func([]byte)) error {
	server := asynq.NewServer(q.redis, asynq.Config{
		Concurrency:       concurrency,
		TaskCheckInterval: *checkInterval,
		LogLevel:          asynq.ErrorLevel,
	})
	return server.Start(asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
		handle(task.Payload())
		return nil
	}))
}

func (q *queue) Empty(context.Context) (bool, error) {
	info, err := q.inspector.GetQueueInfo(queueName)
	if err != nil {
		return false, err
	}
	return info.Size == 0, nil
}
