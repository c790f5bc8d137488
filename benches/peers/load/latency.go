package load

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Quantiles are in microseconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func quantiles(delays []float64) *Quantiles {
	if len(delays) == 0 {
		return nil
	}
	slices.Sort(delays)
	at := func(quantile float64) float64 { return delays[int(quantile*float64(len(delays)-1))] }
	return &Quantiles{P50: at(0.5), P99: at(0.99)}
}

// latency measures from just before a job is enqueued until its handler starts in a separate process. A job is sent
// when it is due, even if earlier calls have not returned.
func latency(ctx context.Context, queue Queue, duration time.Duration) (*Figures, error) {
	worker, err := startWorker()
	if err != nil {
		return nil, err
	}
	warmupJobs := int(seconds(*warmupSeconds).Seconds() * float64(*rate))
	jobs := warmupJobs + int(duration.Seconds()*float64(*rate))
	failures := make(chan error, jobs)
	var calls sync.WaitGroup
	var before CPUTime
	var measured time.Time
	first := time.Now()
	for i := range jobs {
		time.Sleep(time.Until(first.Add(time.Duration(i) * time.Second / time.Duration(*rate))))
		if i == warmupJobs {
			before, measured = cpuTime(worker.pid()), time.Now()
		}
		calls.Go(func() {
			var stamp int64
			if i >= warmupJobs {
				stamp = time.Now().UnixNano()
			}
			if err := queue.Enqueue(ctx, newPayload(stamp)); err != nil {
				failures <- err
			}
		})
	}
	calls.Wait()
	select {
	case err := <-failures:
		return nil, err
	default:
	}
	if err := worker.untilSettled(int64(jobs)); err != nil {
		return nil, err
	}
	figures := &Figures{
		Jobs:    jobs - warmupJobs,
		Seconds: time.Since(measured).Seconds(),
		CPU:     cpuTime(worker.pid()).since(before),
	}
	delays, err := worker.end()
	figures.LatencyUS = quantiles(delays)
	return figures, err
}
