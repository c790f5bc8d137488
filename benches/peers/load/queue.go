// Package load puts the same workloads on any queue that Go can speak to; ../bullmq/load.js is the same in JavaScript.
package load

import "context"

// Queue is what a peer brings: its own calls, as its users would write them.
type Queue interface {
	// EnqueueAll enqueues n jobs by the fastest call there is for many.
	EnqueueAll(ctx context.Context, n int, payload []byte) error
	// Enqueue enqueues one job and returns when the server has it.
	Enqueue(ctx context.Context, payload []byte) error
	// Work starts a worker that runs so many jobs at once, settles each after handle, and ends with ctx.
	Work(ctx context.Context, concurrency int, handle func(payload []byte)) error
	// Empty says whether no job waits or runs.
	Empty(ctx context.Context) (bool, error)
}
