// Package load runs the same workloads on any queue with a Go client. ../bullmq/main.js is the same in JavaScript.
package load

import "context"

// Queue is implemented by each peer with the calls of its client.
type Queue interface {
	// EnqueueAll enqueues n jobs with the fastest bulk call.
	EnqueueAll(ctx context.Context, n int, payload []byte) error
	// Enqueue enqueues one job and returns when the server has stored it.
	Enqueue(ctx context.Context, payload []byte) error
	// Work starts a worker that runs jobs concurrently, settles each after handle, and ends with ctx.
	Work(ctx context.Context, concurrency int, handle func(payload []byte)) error
	// Empty returns whether no job waits or runs.
	Empty(ctx context.Context) (bool, error)
}
