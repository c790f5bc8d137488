// A worker on a Subscribe stream, to be copied: put your own functions into `handlers`. docs/protocol.md explains each rule.
//
// npm install @grpc/grpc-js @grpc/proto-loader
// BANANAS_BROKER=http://127.0.0.1:8080 PROTO=../../proto node stream_worker.js demo
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTO = process.env.PROTO ?? path.resolve(__dirname, '../../proto');
// keepCase: names as in the .proto files; others would be dropped in silence. Payloads are Buffers: a string would be read as base64.
const options = { includeDirs: [PROTO], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const { BrokerService } = grpc.loadPackageDefinition(protoLoader.loadSync('bananas/v1/broker_service.proto', options)).bananas.v1;

const ADDRESSES = (process.env.BANANAS_BROKER ?? '127.0.0.1:8080').split(',').map((address) => address.replace('http://', ''));
const CONCURRENCY = 10;
const LEASE_SECONDS = Number(process.env.LEASE_SECONDS ?? 30);
const STOP_SECONDS = 20; // what still runs so long after SIGTERM goes back to the queue
const { INVALID_ARGUMENT, FAILED_PRECONDITION, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED } = grpc.status;
// Before `opened` these say that trying again cannot help. Any other end of a stream, also OK, means: open the next one.
const HOPELESS = [INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED];

const handlers = {
  async upper(payload) {
    return Buffer.from(payload.toString().toUpperCase());
  },
  // A long job looks at `signal`: somebody has cancelled it, or another worker has it by now.
  sleep: (payload, signal) =>
    new Promise((resolve, reject) => {
      const timer = setTimeout(() => resolve(Buffer.from('slept')), 1000 * Number(payload.toString()));
      signal.addEventListener('abort', () => {
        clearTimeout(timer);
        reject(new Error('cancelled'));
      });
    }),
};

const log = (...words) => console.log(new Date().toISOString(), ...words);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const seconds = (duration, otherwise) => (duration ? duration.seconds + duration.nanos / 1e9 : 0) || otherwise;
const now = () => performance.now() / 1000; // monotonic
const textOf = (token) => token.toString('base64'); // Buffers are no keys of a Map

class Worker {
  running = new Map(); // token -> AbortController of the handler
  answers = new Map(); // token -> the settlement that no broker has confirmed yet
  underWay = []; // the tokens in the settle frame whose results are not here yet
  stream = null; // while it is open and takes frames
  opened = null;
  sessionId = '';
  sequence = 0;
  lastFrame = now();
  stopping = false;

  constructor(routingKey) {
    this.selector = { routing_keys: [routingKey], job_types: Object.keys(handlers) };
  }

  // Keeps a stream open, at one broker after the other, until it is told to stop and has answered for everything.
  async run() {
    for (let tries = 0; !this.finished(); ) {
      // A client of its own for each try: the back-off of a shared channel would come on top of ours.
      const client = new BrokerService(ADDRESSES[tries % ADDRESSES.length], grpc.credentials.createInsecure());
      const { isOpen, error } = await this.one(client.Subscribe());
      client.close();
      Object.assign(this, { stream: null, underWay: [] }); // unconfirmed answers are sent again on the next stream
      if (error) log(`stream ended: ${error.code} ${error.details}`);
      if (error && !isOpen && HOPELESS.includes(error.code)) throw error;
      // The first try comes at once, the next after 0.1, 0.2, 0.4 ... 5 s.
      tries = isOpen ? 1 : tries + 1;
      await pause(isOpen ? 50 : Math.min(5000, 50 * 2 ** tries) * (0.5 + Math.random() / 2));
      // No broker has kept the leases alive meanwhile.
      if (now() - this.lastFrame > LEASE_SECONDS - 2) [...this.running.keys()].forEach((token) => this.lose(token));
    }
  }

  // One stream, to its end.
  one(call) {
    return new Promise((resolve) => {
      let isOpen = false;
      let lastSign = now();
      let timer;
      const beat = (interval) => {
        clearInterval(timer);
        timer = setInterval(() => {
          if (now() - lastSign > 3 * interval) call.cancel(); // a connection that is half dead says nothing by itself
          else if (this.stream === call) call.write({ heartbeat: {} });
        }, interval * 500);
      };
      const end = (error) => {
        clearInterval(timer);
        resolve({ isOpen, error });
      };
      call.on('error', end);
      call.on('end', () => end());
      call.on('data', (frame) => {
        lastSign = this.lastFrame = now();
        if (frame.opened) {
          isOpen = true;
          beat(seconds(frame.opened.heartbeat_interval, 10));
          this.stream = call;
        }
        this.on(frame);
      });
      beat(10);
      // Everything that no broker has confirmed an answer for, whether the work still runs or not.
      this.named = [...this.running.keys(), ...this.answers.keys()].slice(0, 10_000);
      const open = {
        worker: { worker_id: this.opened?.worker_id ?? '', sdk: 'stream_worker.js' },
        selector: this.selector,
        flow: { max_jobs: this.stopping ? 0 : CONCURRENCY },
        lease_duration: { seconds: LEASE_SECONDS },
        session_id: this.sessionId,
        held_tokens: this.named.map((token) => Buffer.from(token, 'base64')),
      };
      call.write({ open });
    });
  }

  on({ opened, jobs, settle_results: results, cancel, lease_lost: lost, draining }) {
    if (opened) this.onOpened(opened);
    else if (jobs && this.stream) {
      this.stream.write({ received: { delivery: jobs.delivery } });
      jobs.jobs.forEach((job) => this.work(job));
    } else if (results) this.onResults(results.results);
    else if (cancel) this.running.get(textOf(cancel.lease_token))?.abort();
    else if (lost) this.lose(textOf(lost.lease_token));
    else if (draining) this.leave();
  }

  onOpened(opened) {
    this.opened = opened;
    this.sessionId = opened.session_id;
    if (this.stopping) this.stream.write({ drain: {} });
    opened.held.forEach((verdict, at) => {
      const token = this.named[at];
      if (verdict.error?.reason === 'ALREADY_SETTLED') this.answers.delete(token);
      // An answer stays: it may be the very one that ended the lease.
      else if (verdict.error?.code === FAILED_PRECONDITION) this.lose(token);
      else if (verdict.cancel_requested) this.running.get(token)?.abort();
    });
    this.settle();
  }

  async work(job) {
    const [token, stop] = [textOf(job.lease_token), new AbortController()];
    this.running.set(token, stop);
    if (this.stopping) return this.answer(token, { nack: { action: 'NACK_ACTION_RELEASE' } });
    log(`started ${job.job_id} attempt ${job.attempt}`);
    let outcome;
    try {
      const data = await handlers[job.job_type](job.payload, stop.signal);
      const failure = { type: 'ResultTooLarge', message: `${data.length} bytes` };
      const fits = data.length <= this.opened.max_payload_bytes;
      outcome = fits ? { ack: { result: { data } } } : { nack: { action: 'NACK_ACTION_DEAD_LETTER', failure } };
    } catch (error) {
      const action = stop.signal.aborted ? 'NACK_ACTION_DISCARD' : 'NACK_ACTION_RETRY';
      outcome = { nack: { action, failure: { type: error.name, message: error.message, stack: error.stack } } };
    }
    log(`finished ${job.job_id}`);
    this.answer(token, outcome);
  }

  answer(token, outcome) {
    if (!this.running.delete(token)) return; // the lease was lost: there is nobody to answer to
    this.answers.set(token, { lease_token: Buffer.from(token, 'base64'), ...outcome });
    this.settle();
  }

  // Sends answers, one frame at a time; what comes meanwhile goes with the next one.
  settle() {
    if (!this.stream || this.underWay.length) return;
    if (this.finished()) return this.leave();
    const settlements = [];
    let size = 0;
    for (const settlement of this.answers.values()) {
      size += (settlement.ack?.result.data.length ?? 0) + 1024 + 2 * JSON.stringify(settlement.nack ?? '').length; // no less than it takes
      if (settlements.length && (settlements.length === this.opened.max_batch_items || size > this.opened.max_batch_bytes)) break;
      settlements.push(settlement);
    }
    this.underWay = settlements.map((settlement) => textOf(settlement.lease_token));
    this.sequence += 1;
    if (settlements.length) this.stream.write({ settle: { sequence: this.sequence, settlements } });
  }

  onResults(results) {
    let again = 0;
    results.forEach(({ error }, at) => {
      const token = this.underWay[at];
      if (!error || error.code === FAILED_PRECONDITION) this.answers.delete(token); // applied, or never to be: LEASE_LOST, ALREADY_SETTLED
      else if (error.code === INVALID_ARGUMENT) {
        // The broker cannot take this answer: say so, or the lease lives on.
        const nack = { action: 'NACK_ACTION_DEAD_LETTER', failure: { type: 'AnswerRefused', message: error.message } };
        this.answers.set(token, { lease_token: Buffer.from(token, 'base64'), nack });
      } else again = Math.max(again, 1, seconds(error.retry_after, 0)); // unknown, or not done: the same answer again is safe
    });
    this.underWay = [];
    setTimeout(() => this.settle(), again * 1000);
  }

  lose(token) {
    const stop = this.running.get(token);
    if (!stop) return;
    log('lease lost');
    this.running.delete(token);
    stop.abort();
  }

  // Half-closes the stream; results that are under way still come. The broker ends a half-closed stream; the timer is for one that hangs.
  leave() {
    const call = this.stream;
    if (!call) return;
    this.stream = null;
    call.end();
    setTimeout(() => call.cancel(), 2000).unref();
  }

  finished() {
    return this.stopping && !this.running.size && !this.answers.size;
  }

  // SIGTERM: no new jobs, an answer for those that run, then the stream is half-closed.
  stop() {
    this.stopping = true;
    this.stream?.write({ drain: {} });
    this.settle();
    setTimeout(() => {
      [...this.running.keys()].forEach((token) => this.answer(token, { nack: { action: 'NACK_ACTION_RELEASE' } }));
      setTimeout(() => process.exit(1), 5000).unref(); // no broker took the answers; the jobs come again when their leases are over
    }, STOP_SECONDS * 1000).unref();
  }
}

const worker = new Worker(process.argv[2]);
process.on('SIGTERM', () => worker.stop());
process.on('SIGINT', () => worker.stop());
worker.run().then(() => process.exit(0));
