// A worker on a Subscribe stream. Copy it and put your functions into handlers. docs/protocol.md explains each rule.
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@latest google.golang.org/grpc/cmd/protoc-gen-go-grpc@latest
//	buf generate                 # writes the stubs into gen/
//	BANANAS_BROKER=http://127.0.0.1:8080 go run . demo
package main

import (
	"bytes"
	"context"
	"errors"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // to print the details of errors

	pb "bananas.dev/examples/stream_worker/gen/bananas/v1"
)

const (
	concurrency = 10
	stopTime    = 20 * time.Second // jobs that still run this long after SIGTERM are released
)

var (
	addresses = strings.Split(strings.ReplaceAll(env("BANANAS_BROKER", "127.0.0.1:8080"), "http://", ""), ",")
	lease     = seconds(env("LEASE_SECONDS", "30"))
	// Errors before opened that a retry cannot fix. After any other end of a stream, also OK, the next stream is opened.
	fatal = []codes.Code{codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented}
)

// A long job checks ctx: the job was cancelled, or its lease is lost.
var handlers = map[string]func(ctx context.Context, payload []byte) ([]byte, error){
	"upper": func(_ context.Context, payload []byte) ([]byte, error) { return bytes.ToUpper(payload), nil },
	"sleep": func(ctx context.Context, payload []byte) ([]byte, error) {
		select {
		case <-time.After(seconds(string(payload))):
			return []byte("slept"), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	},
}

type worker struct {
	selector  *pb.Selector
	mu        sync.Mutex                    // for all fields below
	running   map[string]context.CancelFunc // by lease token
	settling  map[string]*pb.Settlement     // those without a result yet
	inFlight  []string                      // the tokens of the settle frame that was sent and has no results yet
	out       chan *pb.SubscribeRequest     // while a stream is open; closing it half-closes the stream
	hangUp    context.CancelFunc            // ends the stream at once
	opened    *pb.Opened
	sessionID string
	sequence  uint64
	lastFrame time.Time // time.Since of it is monotonic
	stopping  bool
}

// run keeps a stream open, trying the brokers in turn, until the worker is stopped and all its jobs are settled.
func (w *worker) run() error {
	for tries := 0; !w.finished(); {
		isOpen, err := w.stream(addresses[tries%len(addresses)])
		log.Printf("stream ended: %v", err)
		if !isOpen && slices.Contains(fatal, status.Code(err)) {
			return err
		}
		// The first retry is immediate, the next ones wait 0.1, 0.2, 0.4 ... 5 s.
		wait := 50 * time.Millisecond
		if tries++; isOpen {
			tries = 1
		} else {
			wait = time.Duration((0.5 + rand.Float64()/2) * float64(min(5*time.Second, wait<<min(tries, 10))))
		}
		time.Sleep(wait)
		w.mu.Lock()
		if time.Since(w.lastFrame) > lease-2*time.Second {
			for token := range w.running { // no broker has renewed the leases
				w.lose(token)
			}
		}
		w.mu.Unlock()
	}
	return nil
}

// stream runs one stream until it ends. It uses a new connection: the backoff of a shared one would be added to this
// one.
func (w *worker) stream(address string) (isOpen bool, err error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	call, err := pb.NewBrokerServiceClient(conn).Subscribe(ctx)
	if err != nil {
		return false, err
	}
	named, first := w.first()
	if err := call.Send(&pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Open{Open: first}}); err != nil {
		_, err = call.Recv() // Recv returns the reason
		return false, err
	}
	silence := time.AfterFunc(30*time.Second, cancel) // a broken connection may not report an error
	defer silence.Stop()
	defer func() {
		w.mu.Lock()
		w.leave()
		w.inFlight = nil // settlements without a result are sent again on the next stream
		w.mu.Unlock()
	}()
	for {
		frame, err := call.Recv()
		if err != nil {
			return isOpen, err
		}
		w.mu.Lock()
		w.lastFrame = time.Now()
		if opened := frame.GetOpened(); opened != nil {
			isOpen = true
			w.opened, w.sessionID, w.hangUp = opened, opened.SessionId, cancel
			// Buffered, so that no caller waits for the network while it holds the lock.
			w.out = make(chan *pb.SubscribeRequest, 4*concurrency)
			go send(call, w.out, opened.HeartbeatInterval.AsDuration())
			w.onOpened(named, opened.Held)
		} else {
			w.on(frame)
		}
		silence.Reset(3 * w.opened.HeartbeatInterval.AsDuration())
		w.mu.Unlock()
	}
}

// send is the only function that writes to a stream.
func send(call pb.BrokerService_SubscribeClient, out <-chan *pb.SubscribeRequest, interval time.Duration) {
	heartbeat := time.NewTicker(interval / 2)
	defer heartbeat.Stop()
	for {
		select {
		case frame, more := <-out:
			if !more {
				_ = call.CloseSend()
				return
			}
			_ = call.Send(frame) // Recv returns the error
		case <-heartbeat.C:
			_ = call.Send(&pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
		}
	}
}

func (w *worker) first() ([]string, *pb.Open) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// All held leases: of running jobs, and of settlements without a result.
	named := slices.Concat(slices.Collect(maps.Keys(w.running)), slices.Collect(maps.Keys(w.settling)))
	named = named[:min(len(named), 10_000)]
	held := make([][]byte, 0, len(named))
	for _, token := range named {
		held = append(held, []byte(token))
	}
	flow := &pb.Flow{MaxJobs: concurrency}
	if w.stopping {
		flow.MaxJobs = 0
	}
	return named, &pb.Open{
		Worker: &pb.WorkerInfo{WorkerId: w.opened.GetWorkerId(), Sdk: "stream_worker.go"}, Selector: w.selector, Flow: flow,
		LeaseDuration: durationpb.New(lease), SessionId: w.sessionID, HeldTokens: held,
	}
}

func (w *worker) onOpened(named []string, held []*pb.ExtendResult) {
	if w.stopping {
		w.out <- drain
	}
	for at, result := range held {
		token := named[at]
		switch {
		case result.Error.GetReason() == "ALREADY_SETTLED":
			delete(w.settling, token)
		case result.Error.GetCode() == int32(codes.FailedPrecondition):
			w.lose(token) // a settlement is kept: it may be what ended the lease
		case result.CancelRequested:
			w.cancel(token)
		}
	}
	w.settle()
}

func (w *worker) on(frame *pb.SubscribeResponse) {
	switch frame := frame.Frame.(type) {
	case *pb.SubscribeResponse_Jobs:
		if w.out == nil {
			return // half-closed: the jobs cannot be confirmed, so the broker releases them
		}
		received := &pb.Received{Delivery: frame.Jobs.Delivery}
		w.out <- &pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Received{Received: received}}
		for _, job := range frame.Jobs.Jobs {
			ctx, cancel := context.WithCancel(context.Background())
			w.running[string(job.LeaseToken)] = cancel
			if w.stopping {
				w.report(string(job.LeaseToken), nack(pb.NackAction_NACK_ACTION_RELEASE, nil))
			} else {
				go w.work(ctx, job)
			}
		}
	case *pb.SubscribeResponse_SettleResults:
		w.onResults(frame.SettleResults.Results)
	case *pb.SubscribeResponse_Cancel:
		w.cancel(string(frame.Cancel.LeaseToken))
	case *pb.SubscribeResponse_LeaseLost:
		w.lose(string(frame.LeaseLost.LeaseToken))
	case *pb.SubscribeResponse_Draining:
		w.leave()
	}
}

func (w *worker) work(ctx context.Context, job *pb.LeasedJob) {
	log.Printf("started %s attempt %d", job.JobId, job.Attempt)
	data, err := handlers[job.JobType](ctx, job.Payload)
	log.Printf("finished %s", job.JobId)
	w.mu.Lock()
	defer w.mu.Unlock()
	settlement := &pb.Settlement{Outcome: &pb.Settlement_Ack{Ack: &pb.SettleAck{Result: &pb.JobResult{Data: data}}}}
	switch {
	case err != nil && ctx.Err() != nil:
		settlement = nack(pb.NackAction_NACK_ACTION_DISCARD, err)
	case err != nil:
		settlement = nack(pb.NackAction_NACK_ACTION_RETRY, err)
	case len(data) > int(w.opened.MaxPayloadBytes):
		settlement = nack(pb.NackAction_NACK_ACTION_DEAD_LETTER, errors.New("the result is too large"))
	}
	w.report(string(job.LeaseToken), settlement)
}

func nack(action pb.NackAction, why error) *pb.Settlement {
	nack := &pb.SettleNack{Action: action}
	if why != nil {
		nack.Failure = &pb.Failure{Type: "Failed", Message: why.Error()}
	}
	return &pb.Settlement{Outcome: &pb.Settlement_Nack{Nack: nack}}
}

func (w *worker) report(token string, settlement *pb.Settlement) {
	if _, held := w.running[token]; !held {
		return // the lease is lost
	}
	delete(w.running, token)
	settlement.LeaseToken = []byte(token)
	w.settling[token] = settlement
	w.settle()
}

// settle sends the settlements, one frame at a time. Later ones are in the next frame.
func (w *worker) settle() {
	if w.out == nil || len(w.inFlight) > 0 {
		return
	}
	if w.isFinished() {
		w.leave()
		return
	}
	var batch []*pb.Settlement
	size := 0
	for token, settlement := range w.settling {
		size += proto.Size(settlement) + 8
		if len(batch) > 0 && (len(batch) == int(w.opened.MaxBatchItems) || size > int(w.opened.MaxBatchBytes)) {
			break
		}
		batch, w.inFlight = append(batch, settlement), append(w.inFlight, token)
	}
	if len(batch) > 0 {
		w.sequence++
		settle := &pb.Settle{Sequence: w.sequence, Settlements: batch}
		w.out <- &pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Settle{Settle: settle}}
	}
}

func (w *worker) onResults(results []*pb.SettleResult) {
	var again time.Duration
	for at, result := range results {
		token := w.inFlight[at]
		switch codes.Code(result.Error.GetCode()) {
		case codes.OK, codes.FailedPrecondition: // applied, LEASE_LOST or ALREADY_SETTLED
			delete(w.settling, token)
		case codes.InvalidArgument: // the broker rejected this settlement: report that instead
			w.settling[token] = nack(pb.NackAction_NACK_ACTION_DEAD_LETTER, errors.New(result.Error.Message))
			w.settling[token].LeaseToken = []byte(token)
		default: // not applied, or the outcome is unknown: sending the same settlement again is safe
			again = max(again, time.Second, result.Error.RetryAfter.AsDuration())
		}
	}
	w.inFlight = nil
	time.AfterFunc(again, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.settle()
	})
}

func (w *worker) cancel(token string) {
	if cancel := w.running[token]; cancel != nil {
		cancel()
	}
}

func (w *worker) lose(token string) {
	if cancel := w.running[token]; cancel != nil {
		log.Print("lease lost")
		delete(w.running, token)
		cancel()
	}
}

// leave half-closes the stream; outstanding results still arrive. The broker ends a half-closed stream; the timer is
// for a stream that hangs.
func (w *worker) leave() {
	if w.out != nil {
		close(w.out)
		w.out = nil
		time.AfterFunc(2*time.Second, w.hangUp)
	}
}

func (w *worker) isFinished() bool { return w.stopping && len(w.running) == 0 && len(w.settling) == 0 }

func (w *worker) finished() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isFinished()
}

var drain = &pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Drain{Drain: &pb.Drain{}}}

// stop handles SIGTERM: it takes no new jobs, settles the running ones and half-closes the stream.
func (w *worker) stop() {
	w.mu.Lock()
	w.stopping = true
	if w.out != nil {
		w.out <- drain
	}
	w.settle()
	w.mu.Unlock()
	time.Sleep(stopTime)
	w.mu.Lock()
	for token := range w.running {
		w.report(token, nack(pb.NackAction_NACK_ACTION_RELEASE, nil))
	}
	w.mu.Unlock()
	time.Sleep(5 * time.Second)
	os.Exit(1) // no broker took the settlements; the jobs run again when their leases expire
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func seconds(text string) time.Duration {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil {
		log.Print(err)
	}
	return time.Duration(number * float64(time.Second))
}

func main() {
	w := &worker{
		selector: &pb.Selector{RoutingKeys: []string{os.Args[1]}, JobTypes: slices.Collect(maps.Keys(handlers))},
		running:  map[string]context.CancelFunc{}, settling: map[string]*pb.Settlement{}, lastFrame: time.Now(),
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		w.stop()
	}()
	if err := w.run(); err != nil {
		log.Fatal(err)
	}
}
