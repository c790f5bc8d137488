// Runs the workloads on BullMQ. ../load is the same in Go.
'use strict';

const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const { cpuTime, cpuSince } = require('./cpu');
const { BullQueue } = require('./queue');
const { WorkerProcess, beWorker, newPayload } = require('./worker');

// Producers pause while more jobs than this wait, so that the queue does not grow during the measurement. It is enough
// for the worker never to wait, and is reached within the warm-up.
const MAX_BACKLOG = 2_000;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    address: { type: 'string', default: '127.0.0.1:6379' },
    concurrency: { type: 'string', default: '50' },
    'in-flight': { type: 'string', default: '50' },
    payload: { type: 'string', default: '256' },
    warmup: { type: 'string', default: '1' },
    rate: { type: 'string', default: '200' },
    'server-pid': { type: 'string', default: '0' },
  },
});
const settings = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, Number(value)]));
const plainPayload = newPayload(settings.payload, 0);
const used = (...clients) => cpuTime(settings['server-pid'], ...clients);

// Starts a measurement. The returned function ends it.
function measure(...clients) {
  const before = used(...clients);
  const start = performance.now();
  return (jobs) => ({ jobs, seconds: (performance.now() - start) / 1000, cpu_us: cpuSince(before, used(...clients)) });
}

async function produceBulk(queue, n) {
  const measured = measure();
  await queue.enqueueAll(n, plainPayload);
  return measured(n);
}

// Measures one worker that settles n waiting jobs.
async function drain(queue, n) {
  let handled = 0;
  const measured = measure();
  await new Promise((resolve, reject) => {
    const handle = () => {
      handled += 1;
      if (handled === n) resolve();
    };
    queue.work(settings.concurrency, handle).catch(reject);
  });
  while (!(await queue.empty())) await sleep(1);
  return measured(n);
}

async function startWorker() {
  const worker = new WorkerProcess();
  await worker.start([...process.argv.slice(2, -2), 'worker', '0']);
  return worker;
}

// Measures the whole life of jobs that many promises enqueue one at a time.
async function life(queue, seconds) {
  const worker = await startWorker();
  let enqueued = 0;
  let stop = false;
  const oneProducer = async () => {
    while (!stop) {
      if (enqueued - worker.settled > MAX_BACKLOG) {
        await worker.waitForMore();
        continue;
      }
      await queue.enqueue(plainPayload);
      enqueued += 1;
    }
  };
  const producers = Promise.all(Array.from({ length: settings['in-flight'] }, oneProducer));
  await Promise.race([sleep(settings.warmup * 1000), producers]);
  const measured = measure(worker.pid);
  const before = worker.settled;
  await Promise.race([sleep(seconds * 1000), producers]);
  const figures = measured(worker.settled - before);
  stop = true;
  await producers;
  await worker.untilSettled(enqueued);
  await worker.end();
  return figures;
}

// Measures from just before a job is enqueued until its handler starts. A job is sent when it is due, even if earlier
// calls have not returned.
async function latency(queue, seconds) {
  const worker = await startWorker();
  const warmupJobs = Math.floor(settings.warmup * settings.rate);
  const jobs = warmupJobs + Math.floor(seconds * settings.rate);
  const calls = [];
  const first = performance.now();
  let measured;
  for (let i = 0; i < jobs; i += 1) {
    const due = first + (i * 1000) / settings.rate;
    if (due > performance.now()) await sleep(due - performance.now());
    if (i === warmupJobs) measured = measure(worker.pid);
    const stamp = measured ? process.hrtime.bigint() : 0;
    calls.push(queue.enqueue(newPayload(settings.payload, stamp)));
  }
  await Promise.all(calls);
  await worker.untilSettled(jobs);
  const figures = measured(jobs - warmupJobs);
  const delays = (await worker.end()).sort((a, b) => a - b);
  const at = (quantile) => delays[Math.floor(quantile * (delays.length - 1))];
  return { ...figures, latency_us: { p50: at(0.5), p99: at(0.99) } };
}

async function main() {
  const [command, number] = positionals;
  const commands = { 'produce-bulk': produceBulk, drain, life, latency };
  const queue = new BullQueue(values.address);
  await queue.open();
  if (command === 'worker') {
    await beWorker(queue, settings.concurrency);
    return;
  }
  if (!commands[command] || number === undefined) {
    throw new Error('usage: main.js [FLAGS] produce-bulk N | drain N | life SECONDS | latency SECONDS');
  }
  const figures = await commands[command](queue, Number(number));
  // Open connections would keep the process alive.
  process.stdout.write(`${JSON.stringify(figures)}\n`, () => process.exit(0));
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
