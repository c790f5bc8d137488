#!/usr/bin/env bash
# Calls every RPC with the real grpcurl through server reflection, as a person at a terminal would, and checks the answers.
#
# Run by scripts/with-broker.sh. Every method that reflection shows has to be called, or this fails.
set -uo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

address=${BANANAS_BROKER#http://}
key=grpcurl-$$-$RANDOM
passed=0
failed=0
called=

# rpc METHOD JSON: calls it; the answer is in $answer, which is also what an error says.
rpc() {
  called="$called $1"
  answer=$(grpcurl -plaintext -max-time 30 -d "$2" "$address" "bananas.v1.$1" 2>&1)
}

# sees WHAT PATTERN: the last answer matches.
sees() {
  if printf '%s' "$answer" | tr -d '\n' | grep -Eq -- "$2"; then
    passed=$((passed + 1))
    say "ok      $1"
  else
    failed=$((failed + 1))
    say "FAILED  $1: no $2 in:"
    printf '%s\n' "$answer"
  fi
}

# The value of the first string field of that name in the last answer.
field() {
  printf '%s' "$answer" | grep -m 1 "\"$1\":" | sed -E 's/.*: "([^"]*)".*/\1/'
}

job() {
  printf '{"routing_key":"%s","job_type":"shell","payload":"aGVsbG8=","retention":"3600s"}' "$key"
}

lease() {
  rpc BrokerService/Lease "{\"selector\":{\"routing_keys\":[\"$key\"]},\"max_jobs\":${1:-1},\"wait\":\"10s\"}"
}

# BrokerService
rpc BrokerService/Enqueue "{\"job\":$(job)}"
sees "Enqueue stores a job and names it" '"jobId": "[0-9a-f-]{36}"'
id=$(field jobId)
rpc BrokerService/BatchEnqueue "{\"jobs\":[$(job),{\"routing_key\":\"a b\"},$(job),$(job),$(job)]}"
sees "BatchEnqueue answers each job" '"jobId".*"INVALID_FIELD".*"jobId"'

lease
sees "Lease hands out the oldest job with a token" "\"jobId\": \"$id\".*\"leaseToken\": \"[A-Za-z0-9+/=]+\""
token=$(field leaseToken)
rpc BrokerService/Extend "{\"leases\":[{\"lease_token\":\"$token\",\"duration\":\"60s\",\"progress\":{\"percent\":50}}]}"
sees "Extend says how long the lease runs now" '"remaining": "(60|59\.[0-9]+)s"'
rpc BrokerService/Ack "{\"lease_token\":\"$token\",\"result\":{\"data\":\"b2s=\"}}"
sees "Ack is applied" '^\{ *\}$'
rpc BrokerService/Ack "{\"lease_token\":\"$token\",\"result\":{\"data\":\"b2s=\"}}"
sees "Ack again changes nothing" '"alreadySettled": true'

lease
token=$(field leaseToken)
rpc BrokerService/Nack "{\"lease_token\":\"$token\",\"failure\":{\"type\":\"E\",\"message\":\"no\"}}"
sees "Nack puts the job off" '"state": "JOB_STATE_SCHEDULED".*"runTime"'

lease
token=$(field leaseToken)
rpc BrokerService/BatchSettle "{\"settlements\":[{\"lease_token\":\"$token\",\"ack\":{}},{\"lease_token\":\"anVuaw==\",\"ack\":{}}]}"
sees "BatchSettle answers each settlement" '"results": \[ *\{ *\}, *\{ *"error".*"MALFORMED_TOKEN"'

# A one-way stream: open alone, then half-close. It goes on until the time is up, and the jobs that it shows can be settled by hand.
called="$called BrokerService/Subscribe"
answer=$(grpcurl -plaintext -max-time 3 -d "{\"open\":{\"selector\":{\"routing_keys\":[\"$key\"]},\"flow\":{\"max_jobs\":5}}}" \
  "$address" bananas.v1.BrokerService/Subscribe 2>&1)
sees "Subscribe opens a session and sends jobs" '"opened": \{.*"sessionId".*"jobs": \{.*"leaseToken"'
sees "Subscribe stays open after the half-close" 'DeadlineExceeded'

# JobService
rpc JobService/GetJob "{\"routing_key\":\"$key\",\"job_id\":\"$id\",\"full\":true}"
sees "GetJob shows the job and its result" '"payload": "aGVsbG8=".*"state": "JOB_STATE_SUCCEEDED".*"data": "b2s="'
rpc JobService/WaitJob "{\"routing_key\":\"$key\",\"job_id\":\"$id\"}"
sees "WaitJob returns at once for a settled job" '"settled": true'
rpc BrokerService/Enqueue "{\"job\":{\"routing_key\":\"$key\",\"job_type\":\"shell\",\"delay\":\"600s\"}}"
delayed=$(field jobId)
rpc JobService/CancelJob "{\"routing_key\":\"$key\",\"job_id\":\"$delayed\",\"reason\":\"not needed\"}"
sees "CancelJob cancels a job that waits" '"state": "JOB_STATE_CANCELLED"'
rpc JobService/GetJob "{\"routing_key\":\"$key\",\"job_id\":\"00000000-0000-4000-8000-000000000000\"}"
sees "an error has its code and reason" 'NotFound.*JOB_NOT_FOUND'

# QueueService
rpc QueueService/ListQueues "{\"prefix\":\"$key\"}"
sees "ListQueues shows the queue" "\"routingKey\": \"$key\""
rpc QueueService/PauseQueue "{\"routing_key\":\"$key\",\"reason\":\"lunch\"}"
sees "PauseQueue pauses" '"paused": true.*"pauseReason": "lunch"'
rpc QueueService/ResumeQueue "{\"routing_key\":\"$key\"}"
sees "ResumeQueue answers with the queue" "\"routingKey\": \"$key\""
rpc QueueService/GetQueue "{\"routing_key\":\"$key\"}"
sees "GetQueue counts" '"(ready|leased|scheduled|settled)": "[0-9]+"'

# FleetService
rpc FleetService/GetBrokerInfo '{}'
sees "GetBrokerInfo tells limits and Redis" '"maxPayloadBytes": "1048576".*"version": "[0-9.]+"'
rpc FleetService/ListWorkers '{}'
sees "ListWorkers answers" '^\{.*\}$'

# What every tool expects.
answer=$(grpcurl -plaintext -max-time 10 "$address" grpc.health.v1.Health/Check 2>&1)
sees "the health service says SERVING" '"status": "SERVING"'
answer=$(grpcurl -plaintext -max-time 10 "$address" list 2>&1)
sees "reflection lists the services" 'bananas\.v1\.BrokerService.*grpc\.health\.v1\.Health'
answer=$(grpcurl -plaintext -max-time 10 "$address" describe bananas.v1.JobSpec 2>&1)
sees "reflection describes messages" 'message JobSpec'

for service in $(grpcurl -plaintext "$address" list | grep '^bananas\.'); do
  for method in $(grpcurl -plaintext "$address" list "$service"); do
    name=${service##*.}/${method##*.}
    answer=$called
    sees "$name was called" " $name( |$)"
  done
done

say "grpcurl: $passed passed, $failed failed"
[ "$failed" = 0 ]
