package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// reportEvery is how often a worker reports to its producer how many jobs it has settled.
const reportEvery = 5 * time.Millisecond

// stuckAfter: a worker that settles nothing for this long has failed.
const stuckAfter = 30 * time.Second

// progress is a line that a worker prints. The last one has the delays of all stamped jobs.
type progress struct {
	Settled  int64     `json:"settled"`
	DelaysUS []float64 `json:"delays_us,omitempty"`
	Last     bool      `json:"last,omitempty"`
}

// beWorker runs jobs until its stdin ends.
func beWorker(ctx context.Context, queue Queue) error {
	var settled atomic.Int64
	var lock sync.Mutex
	var delays []float64
	err := queue.Work(ctx, *Concurrency, func(payload []byte) {
		if stamp := stampOf(payload); stamp > 0 {
			delay := float64(time.Now().UnixNano()-stamp) / 1000
			lock.Lock()
			delays = append(delays, delay)
			lock.Unlock()
		}
		settled.Add(1)
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	out := json.NewEncoder(os.Stdout)
	reported := int64(-1)
	for {
		select {
		case <-time.After(reportEvery):
			if now := settled.Load(); now != reported {
				reported = now
				if err := out.Encode(progress{Settled: now}); err != nil {
					return err
				}
			}
		case <-ended:
			lock.Lock()
			defer lock.Unlock()
			return out.Encode(progress{Settled: settled.Load(), DelaysUS: delays, Last: true})
		}
	}
}

// worker is a separate process of this program that runs jobs.
type worker struct {
	command *exec.Cmd
	stdin   io.Closer
	settled atomic.Int64
	last    chan progress

	lock  sync.Mutex
	more  *sync.Cond
	ended bool
}

// startWorker starts a worker and returns when it is ready.
func startWorker() (*worker, error) {
	args := append(os.Args[1:len(os.Args)-2:len(os.Args)-2], "worker", "0")
	command := exec.Command(os.Args[0], args...)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	w := &worker{command: command, stdin: stdin, last: make(chan progress, 1)}
	w.more = sync.NewCond(&w.lock)
	ready := make(chan struct{})
	go func() {
		defer w.hasEnded()
		lines := json.NewDecoder(stdout)
		for begun := false; ; begun = true {
			var line progress
			if lines.Decode(&line) != nil {
				return
			}
			w.lock.Lock()
			w.settled.Store(line.Settled)
			w.more.Broadcast()
			w.lock.Unlock()
			if !begun {
				close(ready)
			}
			if line.Last {
				w.last <- line
			}
		}
	}()
	select {
	case <-ready:
		return w, nil
	case <-w.last:
	case <-time.After(stuckAfter):
	}
	_ = command.Process.Kill()
	return nil, errors.New("the worker did not start")
}

func (w *worker) pid() int { return w.command.Process.Pid }

// waitForMore waits until the worker has settled more jobs.
func (w *worker) waitForMore(settled int64) error {
	w.lock.Lock()
	defer w.lock.Unlock()
	for w.settled.Load() == settled {
		if w.ended {
			return errors.New("the worker ended")
		}
		w.more.Wait()
	}
	return nil
}

func (w *worker) hasEnded() {
	w.lock.Lock()
	defer w.lock.Unlock()
	w.ended = true
	w.more.Broadcast()
	close(w.last)
}

// untilSettled waits until this many jobs are settled. It fails if no job is settled for a while.
func (w *worker) untilSettled(jobs int64) error {
	last, since := int64(-1), time.Now()
	for {
		settled := w.settled.Load()
		if settled >= jobs {
			return nil
		}
		if settled != last {
			last, since = settled, time.Now()
		}
		if time.Since(since) > stuckAfter {
			_ = w.command.Process.Kill()
			return fmt.Errorf("only %d of %d jobs were settled", settled, jobs)
		}
		time.Sleep(time.Millisecond)
	}
}

// end stops the worker and returns the delays that it measured, in microseconds.
func (w *worker) end() ([]float64, error) {
	if err := w.stdin.Close(); err != nil {
		return nil, err
	}
	last := <-w.last
	return last.DelaysUS, w.command.Wait()
}
