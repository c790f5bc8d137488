package load

import (
	"context"
	"sync/atomic"
	"time"
)

// produceBulk measures enqueuing n jobs.
func produceBulk(ctx context.Context, queue Queue, n int) (*Figures, error) {
	before, start := cpuTime(), time.Now()
	if err := queue.EnqueueAll(ctx, n, newPayload(0)); err != nil {
		return nil, err
	}
	return &Figures{Jobs: n, Seconds: time.Since(start).Seconds(), CPU: cpuTime().since(before)}, nil
}

// drain measures one worker that settles n waiting jobs.
func drain(ctx context.Context, queue Queue, n int) (*Figures, error) {
	var handled atomic.Int64
	all := make(chan struct{})
	before, start := cpuTime(), time.Now()
	err := queue.Work(ctx, *Concurrency, func([]byte) {
		if handled.Add(1) == int64(n) {
			close(all)
		}
	})
	if err != nil {
		return nil, err
	}
	<-all
	for {
		if empty, err := queue.Empty(ctx); empty || err != nil {
			return &Figures{Jobs: n, Seconds: time.Since(start).Seconds(), CPU: cpuTime().since(before)}, err
		}
		time.Sleep(time.Millisecond)
	}
}
