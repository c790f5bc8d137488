// The calls of BullMQ for the workloads.
'use strict';

const { Queue, Worker } = require('bullmq');

const QUEUE_NAME = 'bench';
const JOB_NAME = 'bench';
// Jobs of one addBulk call, and calls in flight.
const BULK_JOBS = 1000;
const BULK_CALLS = 2;
// Settled jobs are removed. By default BullMQ keeps all of them.
const JOB_OPTIONS = { removeOnComplete: true, removeOnFail: true };

class BullQueue {
  constructor(address) {
    const [host, port] = address.split(':');
    // maxRetriesPerRequest: BullMQ requires null for the connection of a worker. The rest are the defaults of ioredis.
    this.connection = { host, port: Number(port), maxRetriesPerRequest: null };
    this.queue = new Queue(QUEUE_NAME, { connection: this.connection, defaultJobOptions: JOB_OPTIONS });
  }

  async open() {
    await this.queue.waitUntilReady();
  }

  async enqueueAll(n, payload) {
    let left = n;
    const oneCaller = async () => {
      while (left > 0) {
        const size = Math.min(left, BULK_JOBS);
        left -= size;
        await this.queue.addBulk(Array.from({ length: size }, () => ({ name: JOB_NAME, data: { payload } })));
      }
    };
    await Promise.all(Array.from({ length: BULK_CALLS }, oneCaller));
  }

  async enqueue(payload) {
    await this.queue.add(JOB_NAME, { payload });
  }

  // Starts a worker that runs this many jobs at the same time.
  async work(concurrency, handle) {
    const handler = async (job) => handle(job.data.payload);
    this.worker = new Worker(QUEUE_NAME, handler, { connection: this.connection, concurrency, autorun: false });
    this.worker.on('error', (error) => {
      process.stderr.write(`${error.stack}\n`);
      process.exit(1);
    });
    await this.worker.waitUntilReady();
    this.worker.run();
  }

  // Returns whether no job waits or runs.
  async empty() {
    const counts = await this.queue.getJobCounts('wait', 'active');
    return counts.wait === 0 && counts.active === 0;
  }
}

module.exports = { BullQueue };
