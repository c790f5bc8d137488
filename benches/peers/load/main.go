package load

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"
)

// The flags of all peers. A peer may define more before it calls Main.
var (
	Address     = flag.String("address", "127.0.0.1:6379", "host:port of the server")
	Concurrency = flag.Int("concurrency", 50, "jobs that a worker runs at once")
	InFlight    = flag.Int("in-flight", 50, "goroutines that enqueue one job at a time")

	payloadBytes  = flag.Int("payload", 256, "bytes of payload")
	warmupSeconds = flag.Float64("warmup", 1, "life, latency: seconds before measuring")
	rate          = flag.Int("rate", 200, "latency: jobs per second")
	serverPID     = flag.Int("server-pid", 0, "the server's process, for its CPU time")
)

// Figures is what a command prints, as one line of JSON.
type Figures struct {
	Jobs      int        `json:"jobs"`
	Seconds   float64    `json:"seconds"`
	CPU       CPUTime    `json:"cpu_us"`
	LatencyUS *Quantiles `json:"latency_us,omitempty"`
}

// Main runs the command of the arguments: produce-bulk N, drain N, life SECONDS or latency SECONDS.
func Main(open func(context.Context) (Queue, error)) {
	flag.Parse()
	if err := run(open); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(open func(context.Context) (Queue, error)) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if flag.NArg() != 2 {
		return fmt.Errorf("usage: %s [FLAGS] produce-bulk N | drain N | life SECONDS | latency SECONDS", os.Args[0])
	}
	number, err := strconv.ParseFloat(flag.Arg(1), 64)
	if err != nil {
		return err
	}
	queue, err := open(ctx)
	if err != nil {
		return err
	}
	var figures *Figures
	switch flag.Arg(0) {
	case "produce-bulk":
		figures, err = produceBulk(ctx, queue, int(number))
	case "drain":
		figures, err = drain(ctx, queue, int(number))
	case "life":
		figures, err = life(ctx, queue, seconds(number))
	case "latency":
		figures, err = latency(ctx, queue, seconds(number))
	case "worker":
		// Started by life and latency.
		return beWorker(ctx, queue)
	default:
		err = fmt.Errorf("unknown command %s", flag.Arg(0))
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

func seconds(number float64) time.Duration { return time.Duration(number * float64(time.Second)) }

// stampBytes is the length of the timestamp at the start of a payload: when its job was enqueued, in nanoseconds; 0 if
// that is not measured.
const stampBytes = 20

func newPayload(stamp int64) []byte {
	payload := bytes.Repeat([]byte("x"), max(*payloadBytes, stampBytes))
	copy(payload, fmt.Sprintf("%0*d", stampBytes, stamp))
	return payload
}

func stampOf(payload []byte) int64 {
	stamp, _ := strconv.ParseInt(string(payload[:stampBytes]), 10, 64)
	return stamp
}
