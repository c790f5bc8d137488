package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// maxBacklog: producers pause while more jobs than this wait, so that the queue does not grow during the measurement.
// It is enough for the worker never to wait, and is reached within the warm-up.
const maxBacklog = 2_000

// life measures the whole life of jobs that many goroutines enqueue one at a time, with a worker in a separate process.
func life(ctx context.Context, queue Queue, duration time.Duration) (*Figures, error) {
	worker, err := startWorker()
	if err != nil {
		return nil, err
	}
	var enqueued atomic.Int64
	var stop atomic.Bool
	failures := make(chan error, *InFlight)
	var producers sync.WaitGroup
	for range *InFlight {
		producers.Go(func() {
			for !stop.Load() {
				if settled := worker.settled.Load(); enqueued.Load()-settled > maxBacklog {
					if err := worker.waitForMore(settled); err != nil {
						failures <- err
						return
					}
					continue
				}
				if err := queue.Enqueue(ctx, newPayload(0)); err != nil {
					failures <- err
					return
				}
				enqueued.Add(1)
			}
		})
	}
	time.Sleep(seconds(*warmupSeconds))
	before, start, settled := cpuTime(worker.pid()), time.Now(), worker.settled.Load()
	time.Sleep(duration)
	figures := &Figures{
		Jobs:    int(worker.settled.Load() - settled),
		Seconds: time.Since(start).Seconds(),
		CPU:     cpuTime(worker.pid()).since(before),
	}
	stop.Store(true)
	producers.Wait()
	select {
	case err := <-failures:
		return nil, err
	default:
	}
	if err := worker.untilSettled(enqueued.Load()); err != nil {
		return nil, err
	}
	_, err = worker.end()
	return figures, err
}
