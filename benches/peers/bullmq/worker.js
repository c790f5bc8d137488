// The worker of life and latency: a separate process that reports to its producer how many jobs it has settled.
'use strict';

const { fork } = require('node:child_process');
const { setTimeout: sleep } = require('node:timers/promises');

const REPORT_EVERY_MS = 5;
// A worker that settles nothing for this long has failed.
const STUCK_AFTER_MS = 30_000;

// A payload starts with the time when its job was enqueued, in nanoseconds of a clock that all processes share; 0 if
// that is not measured.
const STAMP_BYTES = 20;
const newPayload = (bytes, stamp) => String(stamp).padStart(STAMP_BYTES, '0').padEnd(bytes, 'x');
const stampOf = (payload) => BigInt(payload.slice(0, STAMP_BYTES));

// Runs jobs until the producer sends a message.
async function beWorker(queue, concurrency) {
  let settled = 0;
  let reported = -1;
  const delaysUs = [];
  await queue.work(concurrency, (payload) => {
    const stamp = stampOf(payload);
    if (stamp > 0n) delaysUs.push(Number(process.hrtime.bigint() - stamp) / 1000);
    settled += 1;
  });
  setInterval(() => {
    if (settled === reported) return;
    reported = settled;
    process.send({ settled });
  }, REPORT_EVERY_MS);
  process.on('message', () => process.send({ settled, delaysUs, last: true }, () => process.exit(0)));
  process.on('disconnect', () => process.exit(1));
}

// The producer's side of the worker.
class WorkerProcess {
  settled = 0;
  waiting = [];

  // Starts the worker and returns when it is ready.
  async start(args) {
    this.child = fork(process.argv[1], args);
    this.pid = this.child.pid;
    this.ended = new Promise((_, reject) => {
      this.child.on('exit', () => reject(new Error('the worker ended')));
    });
    const last = new Promise((resolve) => {
      this.child.on('message', (message) => {
        this.settled = message.settled;
        this.ready = true;
        this.waiting.splice(0).forEach((resume) => resume());
        if (message.last) resolve(message);
      });
    });
    this.last = Promise.race([last, this.ended]);
    // No unhandled rejection if nothing waits for the worker.
    this.last.catch(() => {});
    while (!this.ready) await Promise.race([sleep(1), this.ended]);
  }

  // Waits until the worker has settled more jobs.
  waitForMore() {
    const more = new Promise((resolve) => {
      this.waiting.push(resolve);
    });
    return Promise.race([more, this.ended]);
  }

  // Waits until this many jobs are settled. Fails if no job is settled for a while.
  async untilSettled(jobs) {
    let last = -1;
    let since = Date.now();
    while (this.settled < jobs) {
      if (this.settled !== last) {
        last = this.settled;
        since = Date.now();
      }
      if (Date.now() - since > STUCK_AFTER_MS) throw new Error(`only ${this.settled} of ${jobs} jobs were settled`);
      await sleep(1);
    }
  }

  // Stops the worker and returns the delays that it measured, in microseconds.
  async end() {
    this.child.send('end');
    return (await this.last).delaysUs;
  }
}

module.exports = { WorkerProcess, beWorker, newPayload };
