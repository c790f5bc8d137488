// A worker on a Subscribe stream, to be copied: put your own functions into handlers. docs/protocol.md explains each rule.
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

	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // so that details of errors can be printed

	pb "bananas.dev/examples/stream_worker/gen/bananas/v1"
)

const (
	concurrency = 10
	stopTime    = 20 * time.Second // what still runs so long after SIGTERM goes back to the queue
)

var (
	addresses = strings.Split(strings.ReplaceAll(env("BANANAS_BROKER", "127.0.0.1:8080"), "http://", ""), ",")
	lease     = seconds(env("LEASE_SECONDS", "30"))
	// Before opened these say that trying again cannot help. Any other end of a stream, also a good one, means: open the next one.
	hopeless = []codes.Code{codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented}
)

// A long job looks at ctx: somebody has cancelled it, or another worker has it by now.
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
	mu        sync.Mutex                    // for all that follows
	running   map[string]context.CancelFunc // by lease token
	answers   map[string]*pb.Settlement     // those that no broker has confirmed yet
	underWay  []string                      // the tokens in the settle frame whose results are not here yet
	out       chan *pb.SubscribeRequest     // while a stream is open and takes frames; closing it half-closes the stream
	hangUp    context.CancelFunc            // ends the stream at once
	opened    *pb.Opened
	sessionID string
	sequence  uint64
	lastFrame time.Time // time.Since of it is monotonic
	stopping  bool
}

// run keeps a stream open, at one broker after the other, until it is told to stop and has answered for everything.
func (w *worker) run() error {
	for tries := 0; !w.finished(); {
		isOpen, err := w.stream(addresses[tries%len(addresses)])
		log.Printf("stream ended: %v", err)
		if !isOpen && slices.Contains(hopeless, status.Code(err)) {
			return err
		}
		// The first try comes at once, the next after 0.1, 0.2, 0.4 ... 5 s.
		wait := 50 * time.Millisecond
		if tries++; isOpen {
			tries = 1
		} else {
			wait = time.Duration((0.5 + rand.Float64()/2) * float64(min(5*time.Second, wait<<min(tries, 10))))
		}
		time.Sleep(wait)
		w.mu.Lock()
		if time.Since(w.lastFrame) > lease-2*time.Second {
			for token := range w.running { // no broker has kept the leases alive meanwhile
				w.lose(token)
			}
		}
		w.mu.Unlock()
	}
	return nil
}

// stream runs one stream to its end, over a connection of its own: the back-off of a shared one would come on top of ours.
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
		_, err = call.Recv() // it has the reason
		return false, err
	}
	silence := time.AfterFunc(30*time.Second, cancel) // a connection that is half dead says nothing by itself
	defer silence.Stop()
	defer func() {
		w.mu.Lock()
		w.leave()
		w.underWay = nil // unconfirmed answers are sent again on the next stream
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
			// Room for one frame of each job, so that nobody who holds the lock waits long for the network.
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

// send is the only one that writes to a stream.
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
			_ = call.Send(frame) // Recv has the error
		case <-heartbeat.C:
			_ = call.Send(&pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
		}
	}
}

func (w *worker) first() ([]string, *pb.Open) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Everything that no broker has confirmed an answer for, whether the work still runs or not.
	named := slices.Concat(slices.Collect(maps.Keys(w.running)), slices.Collect(maps.Keys(w.answers)))
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
	for at, verdict := range held {
		token := named[at]
		switch {
		case verdict.Error.GetReason() == "ALREADY_SETTLED":
			delete(w.answers, token)
		case verdict.Error.GetCode() == int32(codes.FailedPrecondition):
			w.lose(token) // an answer stays: it may be the very one that ended the lease
		case verdict.CancelRequested:
			w.cancel(token)
		}
	}
	w.settle()
}

func (w *worker) on(frame *pb.SubscribeResponse) {
	switch frame := frame.Frame.(type) {
	case *pb.SubscribeResponse_Jobs:
		if w.out == nil {
			return // half-closed: they cannot be confirmed, so the broker gives them to somebody else
		}
		w.out <- &pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Received{Received: &pb.Received{Delivery: frame.Jobs.Delivery}}}
		for _, job := range frame.Jobs.Jobs {
			ctx, cancel := context.WithCancel(context.Background())
			w.running[string(job.LeaseToken)] = cancel
			if w.stopping {
				w.answer(string(job.LeaseToken), nack(pb.NackAction_NACK_ACTION_RELEASE, nil))
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
	verdict := &pb.Settlement{Outcome: &pb.Settlement_Ack{Ack: &pb.SettleAck{Result: &pb.JobResult{Data: data}}}}
	switch {
	case err != nil && ctx.Err() != nil:
		verdict = nack(pb.NackAction_NACK_ACTION_DISCARD, err)
	case err != nil:
		verdict = nack(pb.NackAction_NACK_ACTION_RETRY, err)
	case len(data) > int(w.opened.MaxPayloadBytes):
		verdict = nack(pb.NackAction_NACK_ACTION_DEAD_LETTER, errors.New("the result is too large"))
	}
	w.answer(string(job.LeaseToken), verdict)
}

func nack(action pb.NackAction, why error) *pb.Settlement {
	nack := &pb.SettleNack{Action: action}
	if why != nil {
		nack.Failure = &pb.Failure{Type: "Failed", Message: why.Error()}
	}
	return &pb.Settlement{Outcome: &pb.Settlement_Nack{Nack: nack}}
}

func (w *worker) answer(token string, verdict *pb.Settlement) {
	if _, held := w.running[token]; !held {
		return // the lease was lost: there is nobody to answer to
	}
	delete(w.running, token)
	verdict.LeaseToken = []byte(token)
	w.answers[token] = verdict
	w.settle()
}

// settle sends answers, one frame at a time; what comes meanwhile goes with the next one.
func (w *worker) settle() {
	if w.out == nil || len(w.underWay) > 0 {
		return
	}
	if w.isFinished() {
		w.leave()
		return
	}
	var batch []*pb.Settlement
	size := 0
	for token, answer := range w.answers {
		size += proto.Size(answer) + 8
		if len(batch) > 0 && (len(batch) == int(w.opened.MaxBatchItems) || size > int(w.opened.MaxBatchBytes)) {
			break
		}
		batch, w.underWay = append(batch, answer), append(w.underWay, token)
	}
	if len(batch) > 0 {
		w.sequence++
		w.out <- &pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Settle{Settle: &pb.Settle{Sequence: w.sequence, Settlements: batch}}}
	}
}

func (w *worker) onResults(results []*pb.SettleResult) {
	var again time.Duration
	for at, result := range results {
		token := w.underWay[at]
		switch codes.Code(result.Error.GetCode()) {
		case codes.OK, codes.FailedPrecondition: // applied, or never to be: LEASE_LOST, ALREADY_SETTLED
			delete(w.answers, token)
		case codes.InvalidArgument: // the broker cannot take this answer: say so, or the lease lives on
			w.answers[token] = nack(pb.NackAction_NACK_ACTION_DEAD_LETTER, errors.New(result.Error.Message))
			w.answers[token].LeaseToken = []byte(token)
		default: // the outcome is unknown, or nothing was done: the same answer again is safe
			again = max(again, time.Second, result.Error.RetryAfter.AsDuration())
		}
	}
	w.underWay = nil
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

// leave half-closes the stream; results that are under way still come. The broker ends a half-closed stream; the timer is for one that hangs.
func (w *worker) leave() {
	if w.out != nil {
		close(w.out)
		w.out = nil
		time.AfterFunc(2*time.Second, w.hangUp)
	}
}

func (w *worker) isFinished() bool { return w.stopping && len(w.running) == 0 && len(w.answers) == 0 }

func (w *worker) finished() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isFinished()
}

var drain = &pb.SubscribeRequest{Frame: &pb.SubscribeRequest_Drain{Drain: &pb.Drain{}}}

// stop, for SIGTERM: no new jobs, an answer for those that run, then the stream is half-closed.
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
		w.answer(token, nack(pb.NackAction_NACK_ACTION_RELEASE, nil))
	}
	w.mu.Unlock()
	time.Sleep(5 * time.Second)
	os.Exit(1) // no broker took the answers; the jobs come again when their leases are over
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
		running:  map[string]context.CancelFunc{}, answers: map[string]*pb.Settlement{}, lastFrame: time.Now(),
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
