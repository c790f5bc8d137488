package load

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// ticksPerSecond is the unit of CPU times in /proc, on every Linux that Go supports.
const ticksPerSecond = 100

// CPUTime is in microseconds. Client is the sum of all processes of the peer.
type CPUTime struct {
	Client int64 `json:"client"`
	Server int64 `json:"server"`
}

// cpuTime returns the CPU time of this process, of the given processes and of the server.
func cpuTime(clients ...int) CPUTime {
	used := CPUTime{Client: usedMicroseconds(os.Getpid()), Server: usedMicroseconds(*serverPID)}
	for _, pid := range clients {
		used.Client += usedMicroseconds(pid)
	}
	return used
}

func (now CPUTime) since(before CPUTime) CPUTime {
	return CPUTime{Client: now.Client - before.Client, Server: now.Server - before.Server}
}

// usedMicroseconds returns user and system time of a process and of the children it has waited for: fields 14 to 17,
// counted from the end of the name, which may contain any character.
func usedMicroseconds(pid int) int64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var sum int64
	for _, field := range fields[11:15] {
		var ticks int64
		_, _ = fmt.Sscan(field, &ticks)
		sum += ticks
	}
	return sum * int64(time.Second/time.Microsecond) / ticksPerSecond
}
