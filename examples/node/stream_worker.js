// A worker on a Subscribe stream. Copy it and put your functions into `handlers`. docs/protocol.md explains each rule.
//
// npm install @grpc/grpc-js @grpc/proto-loader
// BANANAS_BROKER=http://127.0.0.1:8080 PROTO=../../proto node stream_worker.js demo
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTO = process.env.PROTO ?? path.resolve(__dirname, '../../proto');
// keepCase: field names as in the .proto files; other names would be ignored silently. Payloads are Buffers: a string
// would be read as base64.
const options = { includeDirs: [PROTO], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const definition = protoLoader.loadSync('bananas/v1/broker_service.proto', options);
const { BrokerService } = grpc.loadPackageDefinition(definition).bananas.v1;

const BROKERS = (process.env.BANANAS_BROKER ?? '127.0.0.1:8080').split(',');
const ADDRESSES = BROKERS.map((address) => address.replace('http://', ''));
const CONCURRENCY = 10;
const LEASE_SECONDS = Number(process.env.LEASE_SECONDS ?? 30);
const STOP_SECONDS = 20; // jobs that still run this long after SIGTERM are released
const { INVALID_ARGUMENT, FAILED_PRECONDITION, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED } = grpc.status;
// Errors before `opened` that a retry cannot fix. After any other end of a stream, also OK, the next stream is opened.
const FATAL = [INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED];

const handlers = {
  async upper(payload) {
    return Buffer.from(payload.toString().toUpperCase());
  },
  // A long job checks `signal`: the job was cancelled, or its lease is lost.
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
const textOf = (token) => token.toString('base64'); // a Buffer cannot be the key of a Map

class Worker {
  running = new Map(); // token -> AbortController of the handler
  settlements = new Map(); // token -> the settlement that has no result yet
  inFlight = []; // the tokens of the settle frame that was sent and has no results yet
  stream = null; // while a stream is open and not half-closed
  opened = null;
  sessionId = '';
  sequence = 0;
  lastFrame = now();
  stopping = false;

  constructor(routingKey) {
    this.selector = { routing_keys: [routingKey], job_types: Object.keys(handlers) };
  }

  // Keeps a stream open, trying the brokers in turn, until the worker is stopped and all its jobs are settled.
  async run() {
    for (let tries = 0; !this.finished(); ) {
      // A new client for each try: the backoff of a shared channel would be added to this one.
      const client = new BrokerService(ADDRESSES[tries % ADDRESSES.length], grpc.credentials.createInsecure());
      const { isOpen, error } = await this.runStream(client.Subscribe());
      client.close();
      Object.assign(this, { stream: null, inFlight: [] }); // settlements without a result are sent again
      if (error) log(`stream ended: ${error.code} ${error.details}`);
      if (error && !isOpen && FATAL.includes(error.code)) throw error;
      // The first retry is immediate, the next ones wait 0.1, 0.2, 0.4 ... 5 s.
      tries = isOpen ? 1 : tries + 1;
      await pause(isOpen ? 50 : Math.min(5000, 50 * 2 ** tries) * (0.5 + Math.random() / 2));
      if (now() - this.lastFrame > LEASE_SECONDS - 2) {
        [...this.running.keys()].forEach((token) => this.lose(token)); // no broker has renewed the leases
      }
    }
  }

  // Runs one stream until it ends.
  runStream(call) {
    return new Promise((resolve) => {
      let isOpen = false;
      let lastSign = now();
      let timer;
      const beat = (interval) => {
        clearInterval(timer);
        timer = setInterval(() => {
          if (now() - lastSign > 3 * interval) call.cancel(); // a broken connection may not report an error
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
      // All held leases: of running jobs, and of settlements without a result.
      this.named = [...this.running.keys(), ...this.settlements.keys()].slice(0, 10_000);
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
    opened.held.forEach((result, at) => {
      const token = this.named[at];
      if (result.error?.reason === 'ALREADY_SETTLED') this.settlements.delete(token);
      // A settlement is kept: it may be what ended the lease.
      else if (result.error?.code === FAILED_PRECONDITION) this.lose(token);
      else if (result.cancel_requested) this.running.get(token)?.abort();
    });
    this.settle();
  }

  async work(job) {
    const [token, stop] = [textOf(job.lease_token), new AbortController()];
    this.running.set(token, stop);
    if (this.stopping) return this.report(token, { nack: { action: 'NACK_ACTION_RELEASE' } });
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
    this.report(token, outcome);
  }

  report(token, outcome) {
    if (!this.running.delete(token)) return; // the lease is lost
    this.settlements.set(token, { lease_token: Buffer.from(token, 'base64'), ...outcome });
    this.settle();
  }

  // Sends the settlements, one frame at a time. Later ones are in the next frame.
  settle() {
    if (!this.stream || this.inFlight.length) return;
    if (this.finished()) return this.leave();
    const settlements = [];
    let size = 0;
    for (const settlement of this.settlements.values()) {
      // An upper bound of the encoded size.
      size += (settlement.ack?.result.data.length ?? 0) + 1024 + 2 * JSON.stringify(settlement.nack ?? '').length;
      const isFull = settlements.length === this.opened.max_batch_items || size > this.opened.max_batch_bytes;
      if (settlements.length && isFull) break;
      settlements.push(settlement);
    }
    this.inFlight = settlements.map((settlement) => textOf(settlement.lease_token));
    this.sequence += 1;
    if (settlements.length) this.stream.write({ settle: { sequence: this.sequence, settlements } });
  }

  onResults(results) {
    let again = 0;
    results.forEach(({ error }, at) => {
      const token = this.inFlight[at];
      // Applied, LEASE_LOST or ALREADY_SETTLED.
      if (!error || error.code === FAILED_PRECONDITION) this.settlements.delete(token);
      else if (error.code === INVALID_ARGUMENT) {
        // The broker rejected this settlement: report that instead.
        const nack = { action: 'NACK_ACTION_DEAD_LETTER', failure: { type: 'AnswerRefused', message: error.message } };
        this.settlements.set(token, { lease_token: Buffer.from(token, 'base64'), nack });
      } else again = Math.max(again, 1, seconds(error.retry_after, 0)); // not applied or unknown: it can be sent again
    });
    this.inFlight = [];
    setTimeout(() => this.settle(), again * 1000);
  }

  lose(token) {
    const stop = this.running.get(token);
    if (!stop) return;
    log('lease lost');
    this.running.delete(token);
    stop.abort();
  }

  // Half-closes the stream; outstanding results still arrive. The broker ends a half-closed stream; the timer is for a
  // stream that hangs.
  leave() {
    const call = this.stream;
    if (!call) return;
    this.stream = null;
    call.end();
    setTimeout(() => call.cancel(), 2000).unref();
  }

  finished() {
    return this.stopping && !this.running.size && !this.settlements.size;
  }

  // SIGTERM: take no new jobs, settle the running ones, half-close the stream.
  stop() {
    this.stopping = true;
    this.stream?.write({ drain: {} });
    this.settle();
    setTimeout(() => {
      [...this.running.keys()].forEach((token) => this.report(token, { nack: { action: 'NACK_ACTION_RELEASE' } }));
      // If no broker takes the settlements, the jobs run again when their leases expire.
      setTimeout(() => process.exit(1), 5000).unref();
    }, STOP_SECONDS * 1000).unref();
  }
}

const worker = new Worker(process.argv[2]);
process.on('SIGTERM', () => worker.stop());
process.on('SIGINT', () => worker.stop());
worker.run().then(() => process.exit(0));
