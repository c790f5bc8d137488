// Tests of a Node client that loads the .proto files: unary calls, Subscribe, errors.
//
// Run it with scripts/with-broker.sh, which sets the address of the broker. Prints one line per test, and the totals.
'use strict';

const assert = require('node:assert/strict');
const { randomUUID } = require('node:crypto');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTO = path.resolve(__dirname, '../../proto');
const PATIENCE_MS = 30_000;

const definition = protoLoader.loadSync(
  ['bananas/v1/broker_service.proto', 'bananas/v1/job_service.proto', 'bananas/v1/queue_service.proto'],
  { includeDirs: [PROTO], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
);
const { v1 } = grpc.loadPackageDefinition(definition).bananas;

const address = process.env.BANANAS_BROKER.replace('http://', '');
const credentials = grpc.credentials.createInsecure();
const broker = new v1.BrokerService(address, credentials);
const jobs = new v1.JobService(address, credentials);
const queues = new v1.QueueService(address, credentials);

// A unary call as a promise, with a deadline.
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + PATIENCE_MS };
    client[method](request, options, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

const uniqueKey = () => `node-${randomUUID().slice(0, 8)}`;

const spec = (routing_key, fields) => ({
  routing_key,
  job_type: 'node',
  payload: Buffer.from('{"n":1}'),
  content_type: 'application/json',
  retention: { seconds: 3600 },
  ...fields,
});

const enqueue = (routing_key, fields) => call(broker, 'Enqueue', { job: spec(routing_key, fields) });

const stateOf = async (routing_key, job_id) => (await call(jobs, 'GetJob', { routing_key, job_id })).job.state;

// A Subscribe stream that returns its frames one by one.
class Session {
  constructor(routing_key, max_jobs) {
    this.frames = [];
    this.waiting = [];
    this.stream = broker.Subscribe({ deadline: Date.now() + PATIENCE_MS });
    this.stream.on('data', (frame) => this.receive(frame));
    this.stream.on('error', (error) => this.receive({ frame: 'error', error }));
    this.stream.on('end', () => this.receive({ frame: 'end' }));
    this.send({ open: { selector: { routing_keys: [routing_key] }, flow: { max_jobs } } });
  }

  receive(frame) {
    const resolve = this.waiting.shift();
    if (resolve) resolve(frame);
    else this.frames.push(frame);
  }

  send(frame) {
    this.stream.write(frame);
  }

  // The next frame of this kind. Other frames are skipped.
  async next(kind) {
    for (;;) {
      const frame = this.frames.shift() ?? (await new Promise((resolve) => this.waiting.push(resolve)));
      if (frame.frame === kind) return frame[kind];
      assert.ok(!['error', 'end'].includes(frame.frame), `the stream ended before ${kind}: ${frame.error}`);
    }
  }

  async take(count) {
    const taken = [];
    while (taken.length < count) {
      const { jobs: leased, delivery } = await this.next('jobs');
      this.send({ received: { delivery } });
      taken.push(...leased);
    }
    return taken;
  }

  async settle(...settlements) {
    this.send({ settle: { sequence: 1, settlements } });
    return (await this.next('settle_results')).results;
  }

  close() {
    this.stream.cancel();
  }
}

const facts = {
  async 'a job is enqueued, leased and acked with unary calls'() {
    const key = uniqueKey();
    const { job_id } = await enqueue(key);
    const { jobs: leased } = await call(broker, 'Lease', { selector: { routing_keys: [key] }, wait: { seconds: 10 } });
    assert.equal(leased[0].job_id, job_id);
    assert.equal(leased[0].payload.toString(), '{"n":1}');
    await call(broker, 'Ack', { lease_token: leased[0].lease_token, result: { data: Buffer.from('42') } });
    const done = await call(jobs, 'WaitJob', { routing_key: key, job_id, full: true });
    assert.equal(done.job.state, 'JOB_STATE_SUCCEEDED');
    assert.equal(done.job.result.data.toString(), '42');
  },

  async 'a second job with a unique key replaces or debounces the first'() {
    const key = uniqueKey();
    const replace = { key: 'k', on_conflict: 'ON_CONFLICT_REPLACE' };
    const first = await enqueue(key, { unique: replace });
    const second = await enqueue(key, { unique: replace, payload: Buffer.from('2') });
    assert.deepEqual([second.job_id, second.deduplicated, second.replaced], [first.job_id, true, true]);
    const { jobs: leased } = await call(broker, 'Lease', { selector: { routing_keys: [key] }, wait: { seconds: 10 } });
    assert.deepEqual([leased[0].job_id, leased[0].payload.toString()], [first.job_id, '2']);
    const third = await enqueue(key, { unique: replace });
    assert.deepEqual([third.replaced, third.state], [false, 'JOB_STATE_LEASED']);

    const debounce = { key: 'd', on_conflict: 'ON_CONFLICT_DEBOUNCE', delay: { seconds: 60 } };
    const waits = await enqueue(key, { unique: debounce });
    const again = await enqueue(key, { unique: debounce });
    assert.deepEqual([again.job_id, waits.replaced, again.replaced], [waits.job_id, false, true]);
    assert.ok(Number(again.run_time.seconds) >= Number(waits.run_time.seconds));
  },

  async 'a job is nacked and waits for its next attempt'() {
    const key = uniqueKey();
    const { job_id } = await enqueue(key);
    const { jobs: leased } = await call(broker, 'Lease', { selector: { routing_keys: [key] } });
    const failure = { type: 'TypeError', message: 'x is not a function' };
    const nack = { lease_token: leased[0].lease_token, action: 'NACK_ACTION_RETRY', failure };
    const response = await call(broker, 'Nack', nack);
    assert.equal(response.state, 'JOB_STATE_SCHEDULED');
    const { job } = await call(jobs, 'GetJob', { routing_key: key, job_id });
    assert.deepEqual([job.attempts, job.failure.type], [1, 'TypeError']);
  },

  async 'jobs are delivered and settled on a stream'() {
    const key = uniqueKey();
    const ids = [];
    for (let n = 0; n < 3; n += 1) ids.push((await enqueue(key)).job_id);
    const session = new Session(key, 3);
    assert.ok((await session.next('opened')).session_id);
    const taken = await session.take(3);
    assert.deepEqual(taken.map((job) => job.job_id), ids);
    const results = await session.settle(
      { lease_token: taken[0].lease_token, ack: {} },
      { lease_token: taken[1].lease_token, nack: { action: 'NACK_ACTION_DISCARD' } },
      { lease_token: Buffer.from('junk'), ack: {} },
    );
    assert.deepEqual(results.map((result) => result.error?.reason ?? ''), ['', '', 'MALFORMED_TOKEN']);
    assert.equal(await stateOf(key, ids[0]), 'JOB_STATE_SUCCEEDED');
    assert.equal(await stateOf(key, ids[1]), 'JOB_STATE_CANCELLED');
    session.close();
  },

  async 'lines of the log of a job are written and read'() {
    const key = uniqueKey();
    const { job_id } = await enqueue(key);
    const session = new Session(key, 1);
    const [{ lease_token }] = await session.take(1);
    session.send({ extend: { sequence: 1, leases: [{ lease_token, progress: { log_lines: ['opened', 'read'] } }] } });
    assert.equal((await session.next('extend_results')).results[0].error, null);
    await session.settle({ lease_token, ack: {} });
    session.close();
    const log = await call(jobs, 'ReadJobLog', { routing_key: key, job_id });
    assert.deepEqual(log.lines.map(({ number, line }) => [number, line]), [['1', 'opened'], ['2', 'read']]);
    const newer = await call(jobs, 'ReadJobLog', { routing_key: key, job_id, after: 1 });
    assert.deepEqual(newer.lines.map(({ line }) => line), ['read']);
    const { job } = await call(jobs, 'GetJob', { routing_key: key, job_id });
    assert.equal(job.has_log, true);
  },

  async 'an open stream gets jobs that are enqueued later'() {
    const key = uniqueKey();
    const session = new Session(key, 2);
    await session.next('opened');
    const { job_id } = await enqueue(key, { priority: 9 });
    const [job] = await session.take(1);
    assert.deepEqual([job.job_id, job.priority], [job_id, 9]);
    session.close();
  },

  async 'the job of a cancelled stream is released and delivered again'() {
    const key = uniqueKey();
    const { job_id } = await enqueue(key);
    const first = new Session(key, 1);
    await first.next('jobs');
    first.close();
    const second = new Session(key, 1);
    const [job] = await second.take(1);
    assert.deepEqual([job.job_id, job.losses], [job_id, 0]);
    second.close();
  },

  async 'a queue is paused and resumed'() {
    const key = uniqueKey();
    await enqueue(key);
    assert.equal((await call(queues, 'PauseQueue', { routing_key: key, reason: 'lunch' })).queue.paused, true);
    const { jobs: none, advice } = await call(broker, 'Lease', { selector: { routing_keys: [key] } });
    assert.deepEqual([none.length, advice.reason], [0, 'ADVICE_REASON_PAUSED']);
    assert.equal((await call(queues, 'ResumeQueue', { routing_key: key })).queue.paused, false);
  },

  async 'an error has its gRPC code and details'() {
    await assert.rejects(enqueue('no spaces please'), (error) => {
      assert.equal(error.code, grpc.status.INVALID_ARGUMENT);
      const [details] = error.metadata.get('grpc-status-details-bin');
      assert.ok(details.includes('INVALID_FIELD') && details.includes('bananas.dev'));
      return true;
    });
  },
};

async function main() {
  let failed = 0;
  for (const [fact, test] of Object.entries(facts)) {
    try {
      await test();
      console.log(`ok      ${fact}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${fact}\n${error.stack}`);
    }
  }
  console.log(`node: ${Object.keys(facts).length - failed} passed, ${failed} failed`);
  process.exit(failed ? 1 : 0);
}

main();
