// The CPU time of processes, from /proc.
'use strict';

const fs = require('node:fs');

// The unit of CPU times in /proc, on every Linux that Node supports.
const TICKS_PER_SECOND = 100;

// User and system time in microseconds of a process and of the children it has waited for: fields 14 to 17, counted
// from the end of the name, which may contain any character.
function usedMicroseconds(pid) {
  let stat;
  try {
    stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return 0;
  }
  const fields = stat.slice(stat.lastIndexOf(')') + 1).trim().split(/\s+/);
  return (fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) * 1e6) / TICKS_PER_SECOND;
}

// The CPU time of this process, of the given processes and of the server.
function cpuTime(serverPid, ...clients) {
  return {
    client: [process.pid, ...clients].reduce((sum, pid) => sum + usedMicroseconds(pid), 0),
    server: usedMicroseconds(serverPid),
  };
}

const cpuSince = (before, now) => ({ client: now.client - before.client, server: now.server - before.server });

module.exports = { cpuTime, cpuSince };
